"""Rules for names, addresses and dates of birth."""

import re

from megatron_chimed.data.cleaning import personal_names as names
from megatron_chimed.data.cleaning.personal_data import (
    BLANK,
    CODE,
    COLON,
    DASH,
    NUMBER,
    SEPARATOR,
    PersonalDataRule,
    any_of,
    behind,
    is_address,
    is_recent_date,
)

ROOM_WORDS = ("室", "栋", "幢", "单元", "号楼", "弄", "座", "号院")
ROOM_PATTERNS = [rf"{word}(?<=\d{word})" for word in ROOM_WORDS]
ROOM = any_of("", *ROOM_PATTERNS)
PEOPLE = any_of(
    "姓名 签名 签字 署名 联系人 监护人 收件人 代理人 委托人 家住 住址 地址 住所 居住 户籍 户口 "
    "床号 床位 现居 现住 暂住 住在 出生 生日 生于 我叫 名叫 名字叫 名字是 家属 陪护 "
    "DOB Name name Birth birth Born born",
    *ROOM_PATTERNS,
)
HAN = "[\u4e00-\u9fff]"
DOTTED = f"{HAN}{{1,7}}(?:[·•]{HAN}{{1,7}}){{1,3}}"
NO_WORD = f"(?!{names.WORDS}|{names.FAMOUS})"
SURNAMED = f"{NO_WORD}(?:(?:{names.DOUBLE_SURNAMES})|[{names.SURNAMES}]){HAN}{{1,2}}?"
PINYIN = r"[A-Z][A-Za-z]+[ ,][A-Z][A-Za-z]+(?![A-Za-z])"
NAME_ENDS = (
    r"(?=性别|年龄|民族|职业|出生|科室|床号|住院|门诊|病历|电话|联系|身份证|签[名字]|护士|医[生师]|主任|[男女][\s，,、\d]|"
    "[男女]?(?:$|[^\u4e00-\u9fff·:：]))"
)
# The last character of a title or a role, a surname, and what may follow a name.
NEAR_NAME = re.compile(
    rf"[师生士者人员刀助手治长任妇儿属亲子夫女偶)）][ \t\u3000:：为是/／]{{0,3}}"
    rf"(?:[{names.SURNAMES}]|(?:{names.DOUBLE_SURNAMES})|{HAN}{{1,7}}[·•])[ \u3000]?{HAN}{{1,2}}"
    r"(?:$|[^\u4e00-\u9fff]|[性年民职出科床住门病电联身签护医主男女查现和及])"
).search
PERSON = f"(?:{SURNAMED}|{DOTTED}|[{names.SURNAMES}]{BLANK}{HAN}){NAME_ENDS}"
CONFIRMED = r"(?=[\s，,、（(]{0,3}(?:男|女|性别|年龄|现?年?\d{1,3}岁|\d{1,3}[，,]?[男女]))"
FULL_LABEL = (
    r"(?:(?:患者|病人|家属|产妇|医[生师]|医务人员|护士|住院|宝宝|孩子|患儿|真实|代理人|受检者|报告人|送检人)?"
    r"(?:姓名|签名|签字|署名)|紧急联系人|联系人|监护人|收件人|法定代理人|委托人|代理人)(?:[（(][^（）()]{1,8}[）)])?"
)
FULL_LABELS = any_of("姓名 签名 签字 署名 联系人 监护人 收件人 代理人 委托人")
DUTY = (
    "主任|主治|执业|临床|主管|经治|住院|值班|管床|床位|接诊|门诊|首诊|会诊|手术|麻醉|报告|审核|检查|检验|诊断|记录|"
    "申请|送检|责任|上级|下级|进修|主诊|巡回|器械|带教|家庭|签约|书写|查房|开单|开方|操作|执行|护理|核对|发药|陪护|陪同"
)
# Looks back for the duty, so that the search skips ahead to the last characters.
DOCTOR = rf"(?:医生|医师|护士|技师|药师)(?<=(?:{DUTY}){HAN}{{2}})"
TITLE = (
    rf"(?:{DOCTOR}|(?:者|人|员)(?<=(?:{DUTY}){HAN})"
    r"|主刀|术者|一助|二助|护士长|陪护|科主任|助手|主治|麻醉师)(?:[（(][^（）()]{1,8}[）)])?"
)
ROLE = r"(?:患者|病人|产妇|患儿|家属|母亲|父亲|妻子|丈夫|儿子|女儿|配偶)"
KIN = r"(?:患者家属|家属|陪护|陪同家属)(?:[（(][^（）()]{1,8}[）)])?"

ADDRESS_LABEL = (
    r"(?:家住|(?<!医院)(?<!本院)(?<!门诊)(?<!公司)(?<!药店)(?<!诊所)(?:(?:家庭|现|常|户籍|通讯|通信|联系|收货|居住|邮寄|暂住|户口|单位|工作)"
    r"(?:住址|地址|住所)|住址|住所|地址|居住地|户籍(?=[:：])|户籍地|户籍所在地|户口所在地|居住于|现居住?于?|现住于?|暂住|住在))"
)
ADDRESS_LABELS = any_of("家住 住址 地址 住所 居住 户籍 户口 现居 现住 暂住 住在")
ADDRESS = rf"(?:(?![的了是在被把和]){HAN}|[\dA-Za-z#＃{DASH}]|[（(]{HAN}{{1,8}}[）)]){{4,50}}"
BARE_ADDRESS = (
    rf"(?:(?:(?![到在于住从是去至来往给寄]){HAN}){{2,8}}(?:省|自治区|市|区|县|州)){{1,4}}{HAN}{{0,12}}(?:[\dA-Za-z]{{1,6}}{HAN}{{0,8}}){{0,2}}"
    rf"(?:[路街道巷村园苑庄里镇]|小区)\d*(?:号|弄)?(?:院|楼)?{HAN}{{0,8}}[\dA-Z]{{1,4}}(?:栋|幢|单元|号楼|座|室|弄)"
    rf"(?:[\dA-Za-z{DASH}]{{0,6}}(?:单元|层|室|号|户|楼|门)?){{0,3}}"
)
DATE = (
    r"(?:19|20)\d{2}[./-]\d{1,2}(?![\d./-])|"
    r"\d{1,2}[-./]\d{1,2}[-./](?:19|20)\d{2}(?!\d)"
    r"|(?:(?:公历|农历|阴历|阳历|新历) ?)?(?:\d{4}|\d{2}) ?"
    r"(?:年 ?\d{1,2} ?月(?: ?\d{1,2} ?[日号]?)?|([-./．－])\d{1,2}\2\d{1,2}日?|"
    r"(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d)| \d{1,2} \d{1,2})"
    r"|[一二][九〇零○O][〇零○O一二三四五六七八九]{2}年[一二三四五六七八九十]{1,3}月(?:[一二三四五六七八九十]{1,3}[日号])?"
    r"|(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]* \d{1,2},? (?:19|20)\d{2}"
    r"|\d{1,2} (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]* (?:19|20)\d{2}"
)
BIRTH_LABEL = (
    r"(?:出生(?:日期|年月日?|时间|于)|生日|(?<![发产多衍寄萌])生于|出生(?=[:：])"
    r"|(?<![A-Za-z])(?:DOB|[Dd]ate of [Bb]irth|[Bb]irth ?[Dd]a(?:te|y)|[Bb]orn(?: on)?))"
)
BIRTH_LABELS = any_of("出生 生日 生于 DOB irth orn")
BORN = re.compile("[日号0-9０-９](?:出生|生)").search

PERSON_RULES = (
    PersonalDataRule(
        "birth_date",
        "[出生日期]",
        (CODE, NUMBER, BORN),
        re.compile(
            r"(?<!\d)()(?:19|20)\d{2}(?:年\d{1,2}月\d{1,2}[日号]?|([-./])\d{1,2}\2\d{1,2})(?=出生(?![率后前体缺])|生(?=[，,。；;人\s]))"
        ),
    ),
    PersonalDataRule(
        "record_number",
        "[编号]",
        (PEOPLE, any_of("床号 床位")),
        behind(rf"(?:床号|床位号?|床位){COLON}|床号{BLANK}*", r"[A-Za-z+]?\d{1,4}床?(?!\d)"),
    ),
    PersonalDataRule(
        "birth_date",
        "[出生日期]",
        (PEOPLE, BIRTH_LABELS),
        behind(rf"{BIRTH_LABEL}{SEPARATOR}", DATE),
        is_recent_date,
    ),
    PersonalDataRule(
        "address",
        "[地址]",
        (PEOPLE, ADDRESS_LABELS),
        behind(ADDRESS_LABEL + SEPARATOR, ADDRESS),
        is_address,
    ),
    PersonalDataRule(
        "name",
        "[姓名]",
        (PEOPLE, FULL_LABELS),
        behind(
            rf"{FULL_LABEL}(?:{COLON}|{BLANK}+|[为是]|\n{BLANK}*)",
            rf"(?!{names.NO_NAMES})(?:{DOTTED}{NAME_ENDS}|{SURNAMED}{NAME_ENDS}|{HAN}{{2,4}}?{CONFIRMED}|"
            rf"[{names.SURNAMES}]{BLANK}{{1,2}}{HAN}{NAME_ENDS}|{PINYIN})",
        ),
    ),
    PersonalDataRule(
        "name",
        "[姓名]",
        (PEOPLE, any_of("姓名")),
        behind("姓名", rf"{SURNAMED}(?=性别|年龄|[，,][男女])"),
    ),
    PersonalDataRule(
        "name",
        "[姓名]",
        (PEOPLE, any_of("我叫 名叫 名字叫 名字是")),
        behind("我叫|名叫|名字叫|名字是", f"{SURNAMED}{NAME_ENDS}"),
    ),
    PersonalDataRule(
        "name",
        "[姓名]",
        (PEOPLE, any_of("Name name")),
        behind(r"(?:[Pp]atient(?:'s)? )?(?<![A-Za-z])[Nn]ame[:：] ?", PINYIN),
    ),
    PersonalDataRule(
        "name",
        "[姓名]",
        (PEOPLE, any_of("家属 陪护")),
        behind(
            rf"{KIN}(?:{COLON}|{BLANK}+)|{KIN}(?={HAN}{{2,3}}(?:签[字名]|[，,（(](?:电话|手机)))",
            rf"{SURNAMED}(?=$|\s|[，,（(](?:电话|手机|联系|关系|与|系|父|母|子|女|夫|妻|[1１]\d)|。?$|签)",
        ),
    ),
    PersonalDataRule(
        "address", "[地址]", (PEOPLE, ROOM), re.compile(f"(){BARE_ADDRESS}"), is_address
    ),
    PersonalDataRule(
        "name",
        "[姓名]",
        (NEAR_NAME,),
        behind(
            rf"{TITLE}(?:{COLON}|{BLANK}+|[为是]|[/／])",
            rf"{PERSON}(?:[、/／和及]{BLANK}*{PERSON})*",
        ),
    ),
    PersonalDataRule(
        "name", "[姓名]", (NEAR_NAME,), behind(DOCTOR, rf"{SURNAMED}(?=[，,。；;）)\s]|$|查房|签)")
    ),
    # These may also open a line of a dialogue, where what they say is rarely so short.
    PersonalDataRule(
        "name",
        "[姓名]",
        (NEAR_NAME,),
        behind(rf"(?:医[生师]|护士|药师){COLON}", rf"{SURNAMED}(?=$|[\s，,；;/（(])"),
    ),
    PersonalDataRule(
        "name",
        "[姓名]",
        (NEAR_NAME,),
        behind(rf"{ROLE}(?:{COLON}|{BLANK}*)", f"(?:{SURNAMED}|{DOTTED}){CONFIRMED}"),
    ),
)
