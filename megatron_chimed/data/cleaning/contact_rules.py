"""Rules for ways to reach a person: telephone, e-mail, accounts of messengers."""

import re

from megatron_chimed.data.cleaning.personal_data import (
    ALONE,
    BLANK,
    CODE,
    COLON,
    DASH,
    GAP,
    LONG_NUMBER,
    NO_UNIT,
    NUMBER,
    SEPARATOR,
    PersonalDataRule,
    any_of,
    behind,
    is_account,
    is_telephone_number,
)

ID = "[A-Za-z][A-Za-z0-9_-]{4,19}"
ACCOUNT = rf"(?:[A-Za-z][A-Za-z0-9_-]{{4,19}}|\d{{5,11}})(?![A-Za-z0-9]){NO_UNIT}"
# Without a colon a word of letters may be an app's name; an account mostly has a digit.
MIXED = rf"(?=[A-Za-z_-]*\d)[A-Za-z][A-Za-z0-9_-]{{5,19}}(?![A-Za-z0-9])|\d{{6,11}}{NO_UNIT}"
WECHAT = (
    r"(?:微信|威信|薇信|徽信|[Ww]ei信|卫星号|[Ww]e[Cc]hat|WECHAT|weixin|[Vv]信|(?<![A-Za-z0-9])(?:[Vv][Xx]|[Ww][Xx])|薇"
    r"|(?<![A-Za-z0-9])[Vv](?=[:：]))"
)
QQ = (
    r"(?:(?<![A-Za-z])[Qq]{2}|扣扣|企鹅|(?<![A-Za-z])[Qq](?=[群号:：是]{1,3} ?\d)|(?<=加)我?[扣Qq]"
    r"|(?<![纽折克按衣])扣(?=[:：]?\d{6}))"
)
OTHER_APP = r"(?:抖音|快手|微博|支付宝|钉钉|小红书|[Ss]kype|[Ll]ine|[Tt]elegram|[Ww]hats[Aa]pp)"
KIND = r"(?:交流|患者)?(?: ?(?:群|号码?|账号|帐号|ID|id|联系)){0,3}[吧哦呀哈]?"
CONTACT_LABELS = any_of(
    "微信 威信 徽信 卫星 薇 i信 echat eChat ECHAT eixin V信 v信 VX Vx vx vX V: "
    "v: V： v： WX wx Wx QQ Qq qQ qq 扣 企鹅 加V 加v 我V 我v +V +v ＋V ＋v "
    # A Q alone is in many English texts: it counts before a number or after "add".
    + " ".join(f"{q}{mark}" for q in "Qq" for mark in "群号:：是")
    + " "
    + " ".join(f"{verb}{q}" for q in "Qq" for verb in "加+＋搜我一下个")
)
APP_LABELS = any_of("抖音 快手 微博 支付宝 钉钉 小红书 kype ine: ine： elegram hats")
PHONE_LABEL = (
    r"(?:(?:电话|手机|座机|热线|传真|联系方式|联络方式|小灵通|[Tt]el|TEL|[Pp]hone|[Mm]obile|[Ff]ax|FAX)"
    r"(?:号码?)?(?:[（(][^（）()\d]{1,6}[）)])?|致电|拨打|来电|请拨|电联)"
)
PHONE_LABELS = any_of(
    "电话 手机 座机 热线 传真 联系方式 联络方式 小灵通 致电 拨打 "
    "来电 请拨 电联 Tel tel TEL hone obile Fax fax FAX"
)
EXTENSION = (
    rf"(?:{BLANK}?(?:转|分机|ext[.]?|EXT[.]?|[#＃{DASH}]){BLANK}?(?:分机)?[:：]?{BLANK}?\d{{1,5}})?"
)
NO_CODE = r"(?<!批号|货号|编号|型号)(?<!(?:批号|货号|编号|型号)[ :：])"
COUNTRY = rf"(?:[(（]?(?:[+＋]|00)?86[)）]?{GAP}?)?"
MOBILE_3, FOUR = "[1１][3-9３-９]\\d", "\\d{4}"
MOBILE = (
    rf"(?:{MOBILE_3}\d{{8}}|{MOBILE_3}(?P<gap>[ \u3000.·{DASH}]|{GAP}{{2}}){FOUR}(?P=gap){FOUR}"
    rf"|[(（]{MOBILE_3}[)）]{GAP}?{FOUR}{GAP}?{FOUR}|{MOBILE_3}{GAP}\d{{8}}|{MOBILE_3}\d{GAP}\d{{3}}{GAP}{FOUR}"
    rf"|{MOBILE_3}\d{GAP}{FOUR}{GAP}\d{{3}}|{MOBILE_3}{GAP}\d{{3}}{GAP}\d{{5}}|{MOBILE_3}{FOUR}{GAP}{FOUR}"
    rf"|{MOBILE_3} \d\d \d{{3}} \d{{3}}(?! )"
    rf"|{MOBILE_3} {FOUR} \d\d \d\d|[1１] [3-9](?: \d){{9}}(?! ?\d)|{MOBILE_3}\*{{4}}{FOUR})"
)
BARE_MOBILE = rf"{NO_CODE}{ALONE}(){COUNTRY}{MOBILE}{NO_UNIT}"
AREA = r"0(?:10|2\d|[3-9]\d{2})"
LOCAL = rf"[2-9]\d{{2,3}}{GAP}?\d{{4}}"
LANDLINE = (
    rf"86[{DASH}](?:10|2\d|[3-9]\d{{2}})[{DASH}]{LOCAL}{EXTENSION}|"
    rf"(?:[(（]{AREA}[)）]{GAP}{{0,2}}|{AREA}(?:{BLANK}?[{DASH}]{{1,2}}{BLANK}?|{BLANK}|[.]))"
    rf"{LOCAL}{EXTENSION}"
    rf"|(?:[+＋]|00)86{GAP}?[(（]?(?:10|2\d|[3-9]\d{{2}})[)）]?{GAP}?{LOCAL}{EXTENSION}"
    rf"|(?:010|02\d)[2-9]\d{{7}}"
    rf"|[48]00(?:{GAP}\d{{3}}{GAP}?\d{{4}}|{GAP}\d{{4}}{GAP}?\d{{3}}|\d{GAP}\d{{3}}{GAP}\d{{3}})|400[016789]\d{{6}}(?<!000)"
)
BARE_LANDLINE = rf"{NO_CODE}{ALONE}()(?:{LANDLINE}){NO_UNIT}"
AT_SIGN = (
    r"(?: ?[@＠] ?|[(（\[【{<] ?(?:at|AT|@|＠|艾特) ?[)）\]】}>]| (?:at|AT) |艾特"
    r"|#(?=[A-Za-z0-9]+[.]com\b))"
)
DOT = r"(?:[.．]|[(（\[【][ ]?(?:dot|DOT|点)[ ]?[)）\]】]| (?:dot|DOT) |点(?=com|cn|net))"
ASCII = "A-Za-z0-9\uff10-\uff19\uff21-\uff3a\uff41-\uff5a"
AT = re.compile(r"@|＠|at[)）\]】}>]|AT[)）\]】}>]|艾特|#| at | AT ").search

CONTACT_RULES = (
    PersonalDataRule(
        "email",
        "[邮箱]",
        (CODE, AT),
        re.compile(
            rf"(?<![{ASCII}.%+_-])()(?!(?:git|hg|svn)@)[{ASCII}._%+-]{{1,64}}{AT_SIGN}"
            rf"(?:[{ASCII}-]+{DOT})+[A-Za-z\uff21-\uff3a\uff41-\uff5a]{{2,}}",
        ),
    ),
    PersonalDataRule(
        "contact",
        "[联系方式]",
        (CODE, CONTACT_LABELS),
        behind(rf"(?:{WECHAT}|{QQ}){KIND}(?:{COLON}|{BLANK}*[是为]{BLANK}*)", ACCOUNT),
        is_account,
    ),
    PersonalDataRule(
        "contact",
        "[联系方式]",
        (CODE, CONTACT_LABELS),
        behind(
            rf"(?:加|[+＋]|搜|添加)[我一下个]{{0,2}}(?:{WECHAT}|[Vv]|[Qq]{{1,2}}|扣扣?|企鹅){KIND}{BLANK}*",
            ACCOUNT,
        ),
        is_account,
    ),
    PersonalDataRule(
        "contact",
        "[联系方式]",
        (CODE, CONTACT_LABELS),
        behind(rf"(?:{WECHAT}|{QQ}){KIND}{BLANK}*", MIXED),
    ),
    PersonalDataRule(
        "contact", "[联系方式]", (CODE, APP_LABELS), behind(rf"{OTHER_APP}{KIND}{COLON}", ACCOUNT)
    ),
    PersonalDataRule(
        "phone",
        "[电话]",
        (CODE, NUMBER, PHONE_LABELS),
        behind(
            PHONE_LABEL + SEPARATOR,
            rf"(?:{COUNTRY}{MOBILE}|{LANDLINE}|{LOCAL}(?!\d){EXTENSION}|\d[\d.{DASH}]{{5,15}}\d{EXTENSION}"
            rf"|[1１][3-9](?:{GAP}?\d){{9}}(?!\d)|[+＋]\d[\d ()（）.{DASH}]{{7,17}}\d){NO_UNIT}",
        ),
        is_telephone_number,
    ),
    PersonalDataRule(
        "phone",
        "[电话]",
        (CODE, NUMBER, LONG_NUMBER),
        re.compile(BARE_MOBILE),
    ),
    PersonalDataRule(
        "phone",
        "[电话]",
        (CODE, NUMBER, LONG_NUMBER),
        re.compile(BARE_LANDLINE),
    ),
)
