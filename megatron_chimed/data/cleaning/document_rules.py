"""Rules for numbers of documents and records: ID cards, passports, bank cards, plates."""

import re

from megatron_chimed.data.cleaning.personal_data import (
    ALONE,
    CODE,
    DASH,
    GAP,
    LONG_NUMBER,
    NO_UNIT,
    NUMBER,
    REGION,
    SEPARATOR,
    PersonalDataRule,
    X,
    any_of,
    behind,
    has_id_check_digit,
    has_luhn_digit,
    has_three_digits,
    is_old_id,
)

ID_LABEL = r"(?:身份证件?|证件|身份号|公民身份)(?:号码?)?(?:[（(][^（）()]{1,8}[）)])?"
ID_LABELS = any_of("身份 证件")
TRAVEL_LABEL = (
    r"(?:护照|通行证|回乡证|台胞证|居住证|军官证|士兵证|军人证|驾驶证|驾照|永久居留(?:身份)?证|"
    r"[Pp]assport|PASSPORT)"
    r"(?:号码?|编号|档案编号|[Nn]umber)?(?:[（(][^（）()]{1,8}[）)])?"
)
TRAVEL_LABELS = any_of(
    "护照 通行证 回乡证 台胞证 居住证 军官证 士兵证 军人证 驾驶证 驾照 永久居留 assport PASSPORT"
)
RECORD_LABEL = (
    r"(?:(?:病[历案]|住院|门诊|急诊|就诊|诊疗|登记|挂号|检[查验]|标本|样本|病理|影像|放射|超声|[CX]T|"
    r"MRI?|[XＸ][线光]|患者|病人|社保|医保|社会保障|社会保险|参保|医疗保险|医疗证|新农合|合作医疗|体检|档案|"
    r"报告|健康|个人|电脑|床头|腕带|申请单|会诊|手术|B超|心电图|内镜|胃镜)"
    r"(?:(?:卡|单|证|ID)?(?:号码?|编号)|ID)(?:[（(][^（）()\d]{1,8}[）)])?"
    r"|(?<![A-Za-z])(?:MRN|mrn|PID|[Pp]atient ID|[Cc]hart [Nn]o|"
    r"(?:[Mm]edical )?[Rr]ecord (?:[Nn]o|[Nn]umber)))"
)
RECORD_LABELS = any_of("号 ID MRN mrn number Number No no")
RECORD = rf"(?!NCT|ChiCTR)[A-Za-z]{{0,6}}[{DASH}]?\d[\dA-Za-z{DASH}/]{{3,}}"
BANK_LABEL = (
    r"(?:银行卡|储蓄卡|信用卡|借记卡|银行账户|银行账号|银行帐号|卡号|账号|帐号|账户)(?:号码?|卡号)?"
)
BANK_LABELS = any_of("银行 储蓄卡 信用卡 借记卡 卡号 账号 账户 帐号")
BANK = rf"\d{{4}}(?:{GAP}?\d{{4}}){{3}}(?:{GAP}?\d{{1,3}})?(?!\d)"
LABELLED_BANK = behind(BANK_LABEL + SEPARATOR, BANK)
PLATES = re.compile("[A-Z][·•. -]?[A-Z0-9]{4}").search

DOCUMENT_RULES = (
    PersonalDataRule(
        "id_card",
        "[身份证号]",
        (CODE, NUMBER, ID_LABELS),
        behind(
            ID_LABEL + SEPARATOR,
            rf"\d{{6}} ?[\d*]{{8}} ?[\d*]{{3}}[\d*{X}](?!\d)|\d{{15}}(?!\d)|"
            rf"\d{{6}}{GAP}\d{{8}}{GAP}\d{{3}}[\d{X}](?!\d)|[A-Z]{{1,2}}\d{{6}}[(（]?[\dA][)）]?|"
            r"[A-Z][12]\d{8}(?!\d)",
        ),
    ),
    PersonalDataRule(
        "travel_document",
        "[证件号]",
        (CODE, NUMBER, TRAVEL_LABELS),
        behind(
            TRAVEL_LABEL + SEPARATOR,
            r"[A-Za-z]{0,3}\d{6,12}(?:[(（]\d{1,2}[)）])?(?![\dA-Za-z])|[军海空]字第?\d{5,9}号?",
        ),
    ),
    PersonalDataRule(
        "record_number",
        "[编号]",
        (CODE, NUMBER, RECORD_LABELS),
        behind(RECORD_LABEL + SEPARATOR, RECORD),
    ),
    PersonalDataRule("bank_card", "[银行卡号]", (CODE, NUMBER, BANK_LABELS), LABELLED_BANK),
    PersonalDataRule(
        "id_card",
        "[身份证号]",
        (CODE, NUMBER, LONG_NUMBER),
        re.compile(
            rf"(?<![\d.])(){REGION}\d{{4}}{GAP}?(?:18|19|20)\d{{6}}{GAP}?\d{{3}}[\d{X}](?![\dA-Za-z])"
        ),
        has_id_check_digit,
    ),
    PersonalDataRule(
        "id_card",
        "[身份证号]",
        (CODE, NUMBER, LONG_NUMBER),
        re.compile(rf"{ALONE}(){REGION}\d{{13}}(?![\dA-Za-z]){NO_UNIT}"),
        is_old_id,
    ),
    PersonalDataRule(
        "bank_card",
        "[银行卡号]",
        (CODE, NUMBER, LONG_NUMBER),
        re.compile(
            rf"{ALONE}()(?:62|4\d|5[1-5]|3[57])\d{{2}}(?:{GAP}?\d{{4}}){{3}}(?:{GAP}?\d{{3}})?{NO_UNIT}"
        ),
        has_luhn_digit,
    ),
    PersonalDataRule(
        "plate",
        "[车牌号]",
        (CODE, NUMBER, PLATES),
        re.compile(
            r"()[京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼] ?"
            r"[A-HJ-NP-Z][·•. -]?"
            r"(?:[DF][A-HJ-NP-Z0-9]\d{4}|\d{5}[DF]|[A-HJ-NP-Z0-9]{5}|[A-HJ-NP-Z0-9]{4}[挂学警港澳])"
            r"(?![A-Za-z0-9])"
        ),
        has_three_digits,
    ),
)
