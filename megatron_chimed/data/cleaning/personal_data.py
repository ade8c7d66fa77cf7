"""What a rule for personal data is, how a match is verified, and what patterns share.

In patterns a digit may be full-width; `int` reads both. A label is group 1 and stays.
"""

import datetime
import re
from collections.abc import Callable
from typing import NamedTuple

Search = Callable[[str], object]

# ISO 7064 MOD 11-2 as in GB 11643: weights of the first 17 digits, check digit by remainder.
ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
ID_CHECK_DIGITS = "10X98765432"
REGION = "(?:1[1-5]|2[1-3]|3[1-7]|4[1-6]|5[0-4]|6[1-5]|71|8[1-3])"

X = "Xx\uff38\uff58"
DASH = "\\-\uff0d\u2010-\u2015"
GAP = f"[ \u3000{DASH}]"  # between the groups of a number
BLANK = "[ \t\u3000]"
COLON = f"{BLANK}*[:：]{BLANK}*"
SEPARATOR = f"{BLANK}*(?:[:：#＃为是]{BLANK}*|[Nn][Oo][.．]?{BLANK}*|№{BLANK}*)*"
ALONE = r"(?<![\d.A-Za-z~～])"  # not part of a longer number or code, not the end of a range
# A number before one of these is a measurement, not a telephone number.
NO_UNIT = (
    r"(?!\d|[.．]\d|[A-Za-z]{0,2}\d|\s*(?:/(?![\d\u4e00-\u9fff])|/(?:毫|微(?!信)|升|克|日|天|小时)|"
    r"[×*^%％‰℃]|[~～]\d|单位|拷贝|[亿株倍吨赫焦]|万(?![医主老女先大])|个(?!人)|例(?!如)|只(?![接要能在收])|"
    r"[元步份颗粒枚]|[美欧日]元|平方|立方|次(?!日)|毫[克升米]|微[克升米]|克|升|人次|[两各]?组|条(?!件)|碱基|细胞|"
    r"(?:copies|cells?|reads|I?U|CFU|PFU|bp|[kKM]b|[kM]?Da|[kM]?Hz|mmol|[mkµμnp]?[gGlLmM])(?![A-Za-z])))"
)
# Four characters of an account, an e-mail address or a number; then of a number alone.
WIDE = "\uff10-\uff19\uff20-\uff3a\uff41-\uff5a"
CODE = re.compile(f"[0-9A-Za-z{WIDE}][!-~ \\d·{WIDE}（）{DASH}]{{3}}").search
NUMBER = re.compile(rf"[0-9\uff10-\uff19][\dA-Z\uff21-\uff3a ()（）/.·*{DASH}]{{3}}").search
LONG_NUMBER = re.compile(rf"[0-9\uff10-\uff19][\d ()（）.·*{DASH}]{{6}}").search


def any_of(words: str, *patterns: str) -> Search:
    """Finds one of some words, given with blanks between them, or one of some patterns.

    Each branch starts with a literal character, so that the search skips ahead: 170 MB/s.
    """
    return re.compile("|".join((*map(re.escape, words.split()), *patterns))).search


class PersonalDataRule(NamedTuple):
    """One kind of personal data in one kind of form."""

    name: str
    """In reports."""

    placeholder: str
    """What replaces it."""

    needs: tuple[Search, ...]
    """What finds something in every text with a match, the fastest first."""

    pattern: re.Pattern[str]
    """Group 1 stays, the rest is replaced."""

    is_valid: Callable[[str], bool] = lambda found: True
    """Whether a match without its group 1 is personal data."""


def has_id_check_digit(number: str) -> bool:
    """Whether 18 characters, apart from blanks and dashes, are a citizen's number."""
    number = re.sub(GAP, "", number)
    if not _is_date(number[6:14]):
        return False
    total = sum(weight * int(digit) for weight, digit in zip(ID_WEIGHTS, number[:17], strict=True))
    last = "X" if number[17] in X else str(int(number[17]))
    return ID_CHECK_DIGITS[total % 11] == last


def has_luhn_digit(number: str) -> bool:
    """Whether the last of 15 to 19 digits is right for a card (ISO/IEC 7812-1, annex B)."""
    digits = [int(character) for character in number if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return 15 <= len(digits) <= 19 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def is_recent_date(text: str) -> bool:
    """Whether a date may be the birth of someone alive: no year, two digits, or 1900 and later."""
    years = re.findall(r"\d{4}", text)
    return not years or 1900 <= int(years[0]) <= 2100 or 1900 <= int(years[-1]) <= 2100


def is_telephone_number(text: str) -> bool:
    """Whether what follows a label has the 7 to 16 digits of a number, and is no date."""
    digits = sum(character.isdigit() for character in text)
    return 7 <= digits <= 16 and not re.match(r"(?:19|20)\d\d[-./年]\d{1,2}[-./月]\d{1,2}", text)


def is_address(text: str) -> bool:
    """Whether a place is narrower than a village or a district."""
    if re.search("医院|病房|监护|病区|重症|诊所|宾馆|卫生院", text) and not re.search(
        "[市县路街]", text
    ):
        return False
    marks = len(
        re.findall("省|市|区|县|镇|乡|村|路|街|巷|弄|号|栋|幢|楼|室|单元|座|园|苑|庄|组|屯", text)
    )
    return marks + any(character.isdigit() for character in text) >= 2


def has_three_digits(text: str) -> bool:
    """As the number of a vehicle has."""
    return sum(character.isdigit() for character in text) >= 3


def is_account(text: str) -> bool:
    """Whether an account is a number or a word with at least one letter first."""
    return text.isdigit() or not text[0].isdigit()


def is_old_id(number: str) -> bool:
    """Whether 15 digits, which have no check digit, hold a date."""
    return _is_date("19" + number[6:12])


def _is_date(digits: str) -> bool:
    try:
        datetime.date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return False
    return True


def behind(label: str, found: str) -> re.Pattern[str]:
    """Matches what follows a label."""
    return re.compile(f"({label})(?:{found})")
