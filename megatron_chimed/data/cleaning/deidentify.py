"""Replaces personal data in medical text by placeholders that name its kind.

There are two kinds of rule. A number that can be recognised by itself is replaced anywhere: an ID
card by its region, date and check digit, a mobile number by its prefix and length, a telephone
number by its area code and dash. Other numbers, such as record numbers, and names are replaced only
after a label. So doses, laboratory values, years, drug approval numbers and ICD codes stay. A
surname alone ("Dr Zhang") and addresses stay too: no rule distinguishes them from other text.
"""

import datetime
import re
from collections.abc import Callable
from typing import NamedTuple

from megatron_chimed.data.cleaning.normalize import TextChange

# ISO 7064 MOD 11-2 as in GB 11643: weights of the first 17 digits, check digit by remainder.
ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
ID_CHECK_DIGITS = "10X98765432"
REGION = "(?:1[1-5]|2[1-3]|3[1-7]|4[1-6]|5[0-4]|6[1-5]|71|8[1-3])"

# In patterns `\d` includes full-width digits; `int` reads both.
X = "Xx\uff38\uff58"
DASH = "\\-\uff0d\u2014"
COLON = "[ \t\u3000]*[:\uff1a][ \t\u3000]*"
SEPARATOR = "[ \t\u3000]*(?:[:\uff1a#\uff03为是][ \t\u3000]*)*"
ALONE = r"(?<![\d.A-Za-z~～])"  # not part of a longer number or code, not the end of a range
# A number before one of these is a measurement, not a telephone number.
NO_UNIT = (
    r"(?!\d|\.\d|\s*(?:/(?!\d)|[×*^%％‰℃]|[~～]\d|个|单位|拷贝|万|亿|"
    r"(?:copies|I?U|CFU|mmol|[mkµμn]?[gGlLmM])(?![A-Za-z])))"
)

ID_LABEL = r"(?:身份证件?|证件)(?:号码?)?(?:[（(][^（）()]{1,8}[）)])?"
RECORD_LABEL = (
    r"(?:病[历案]|住院|门诊|急诊|就诊|诊疗|登记|挂号|检[查验]|标本|样本|病理|影像|放射|超声|[CX]T|"
    r"MRI?|[XＸ][线光]|患者|病人|社保|医保|社会保障|体检|档案|报告|银行|健康)"
    r"(?:(?:卡|单|ID)?(?:号码?|编号)|ID)"
)
PHONE_LABEL = r"(?:电话|手机|座机|热线|传真|联系方式|[Tt]el|TEL|[Pp]hone)(?:号码?)?"
CONTACT_LABEL = r"(?:微信|QQ|qq|[Ww]e[Cc]hat)(?:号码?)?"
NAME_LABEL = (
    r"(?:(?:患者|病人|家属|产妇|医[生师]|护士)?(?:姓名|签名|签字)|紧急联系人|联系人|监护人)"
)
NO_NAME = "不详|不便|未|匿名|保密|略|无|同上|本人|家属|父|母|配偶|丈夫|妻|儿子|女儿"
NAME = "(?:[\u4e00-\u9fff]{2,4}?|[\u4e00-\u9fff]{1,6}(?:·[\u4e00-\u9fff]{1,6}){1,2})"
NAME_ENDS = (
    r"(?=性别|年龄|民族|职业|出生|科室|床号|住院|门诊|病历|电话|联系|身份证|[男女][\s，,、\d]|"
    "[男女]?(?:$|[^\u4e00-\u9fff·:\uff1a]))"
)


# Most texts have none of these; one fast search each skips the rules that need them.
LABELLED = re.compile(
    r"[证件号码话机线真式信名字人)）][ \t\u3000]*[:：#＃为是\dA-Za-z+＋(（]|"
    r"[DQqTtLle][ \t\u3000]*[:：#＃为是\d]"
)
LONG_NUMBER = re.compile(rf"\d[\d ()（）{DASH}]{{6}}")
AT = re.compile("[@＠]")


class _PersonalDataRule(NamedTuple):
    name: str
    placeholder: str
    needs: re.Pattern[str]
    pattern: re.Pattern[str]
    is_valid: Callable[[str], bool] = lambda found: True


def _has_check_digit(number: str) -> bool:
    if not _is_date(number[6:14]):
        return False
    total = sum(weight * int(digit) for weight, digit in zip(ID_WEIGHTS, number[:17], strict=True))
    last = "X" if number[17] in X else str(int(number[17]))
    return ID_CHECK_DIGITS[total % 11] == last


def _is_old_number(number: str) -> bool:
    return _is_date("19" + number[6:12])


def _is_date(digits: str) -> bool:
    try:
        datetime.date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return False
    return True


def _behind(label: str, separator: str, found: str) -> re.Pattern[str]:
    """Matches what follows a label; the label itself, group 1, stays."""
    return re.compile(f"({label}{separator})(?:{found})")


# Labelled rules come first: what follows a label needs no further check.
RULES = (
    _PersonalDataRule(
        "id_card",
        "[身份证号]",
        LABELLED,
        _behind(
            ID_LABEL, SEPARATOR, rf"\d{{6}} ?[\d*]{{8}} ?[\d*]{{3}}[\d*{X}](?!\d)|\d{{15}}(?!\d)"
        ),
    ),
    _PersonalDataRule(
        "record_number",
        "[编号]",
        LABELLED,
        _behind(
            RECORD_LABEL,
            SEPARATOR,
            rf"(?!NCT|ChiCTR)[A-Za-z]{{0,6}}[{DASH}]?\d[\dA-Za-z{DASH}]{{3,}}",
        ),
    ),
    _PersonalDataRule(
        "phone",
        "[电话]",
        LABELLED,
        _behind(
            PHONE_LABEL,
            SEPARATOR,
            rf"(?:[+＋]?86[ {DASH}]?)?(?:[(（]\d{{3,4}}[)）] ?|0\d{{2,3}} )?\d[\d{DASH}]{{5,15}}\d",
        ),
    ),
    _PersonalDataRule(
        "contact", "[联系方式]", LABELLED, _behind(CONTACT_LABEL, COLON, "[A-Za-z0-9_-]{5,20}")
    ),
    _PersonalDataRule(
        "name",
        "[姓名]",
        LABELLED,
        _behind(NAME_LABEL, COLON, f"(?!{NO_NAME}){NAME}{NAME_ENDS}"),
    ),
    _PersonalDataRule(
        "email",
        "[邮箱]",
        AT,
        re.compile(
            r"(?<![\w.%+-])()[A-Za-z0-9._%+-]{1,64}[@＠](?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}",
            re.ASCII,
        ),
    ),
    _PersonalDataRule(
        "id_card",
        "[身份证号]",
        LONG_NUMBER,
        re.compile(rf"{ALONE}(){REGION}\d{{4}}(?:18|19|20)\d{{9}}[\d{X}](?![\dA-Za-z])"),
        _has_check_digit,
    ),
    _PersonalDataRule(
        "id_card",
        "[身份证号]",
        LONG_NUMBER,
        re.compile(rf"{ALONE}(){REGION}\d{{13}}(?![\dA-Za-z]){NO_UNIT}"),
        _is_old_number,
    ),
    _PersonalDataRule(
        "phone",
        "[电话]",
        LONG_NUMBER,
        re.compile(
            rf"{ALONE}()(?:(?:[+＋]|00)?86[ {DASH}]?)?"
            rf"[1１][3-9３-９]\d(?:[ {DASH}]?\d{{4}}){{2}}{NO_UNIT}"
        ),
    ),
    _PersonalDataRule(
        "phone",
        "[电话]",
        LONG_NUMBER,
        re.compile(
            rf"{ALONE}()(?:[(（]?0(?:10|2\d|[3-9]\d{{2}})(?:[)）] ?| ?[{DASH}]{{1,2}} ?)"
            rf"[2-9]\d{{6,7}}(?:[转{DASH}]\d{{1,5}})?"
            rf"|[48]00[ {DASH}]\d{{3}}[ {DASH}]?\d{{4}}){NO_UNIT}"
        ),
    ),
)


def deidentify(text: str) -> tuple[str, list[TextChange]]:
    """Replaces personal data by placeholders.

    Returns:
        The text, and the number of replacements of each rule that applied. The example is the
        placeholder alone: the text beside it may hold a name that no rule found.
    """
    counts: dict[str, int] = {}
    placeholders: dict[str, str] = {}
    present = [needs for needs in (LABELLED, LONG_NUMBER, AT) if needs.search(text)]
    for rule in RULES:
        if rule.needs not in present:
            continue
        text, count = _replace(rule, text)
        if count:
            counts[rule.name] = counts.get(rule.name, 0) + count
            placeholders[rule.name] = rule.placeholder
    return text, [TextChange(name, counts[name], placeholders[name]) for name in counts]


def _replace(rule: _PersonalDataRule, text: str) -> tuple[str, int]:
    count = 0

    def substitute(match: re.Match[str]) -> str:
        nonlocal count
        if not rule.is_valid(match[0]):
            return match[0]
        count += 1
        return match[1] + rule.placeholder

    return rule.pattern.sub(substitute, text), count
