"""Unicode normalisation that changes how a text is written and never what it says.

Applied: NFC, half-width ASCII letters and digits, one kind of blank and of line end, no control and
no invisible characters. Not applied: NFKC, which would turn the superscript of 10^5 into 105 and
take unit signs apart; nor any folding of Chinese punctuation, of which colon and brackets carry
meaning in titres and test results. Invariant: a second pass changes nothing.
"""

import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

FULL_WIDTH_OFFSET = 0xFEE0  # from "!" to its full-width form
WORD = "\uff10-\uff19\uff21-\uff3a\uff41-\uff5a"
# % * + - . / < = > ^ _ in full width, narrowed only beside an ASCII letter or digit.
SIGN = "\uff05\uff0a\uff0b\uff0d\uff0e\uff0f\uff1c\uff1d\uff1e\uff3e\uff3f"
INVISIBLE = "\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
JOINERS = "\u200c\u200d"  # they mean something in emoji and between letters of other scripts
BESIDE_JOINER = "\\s!-~\u3000-\u9fff\uff00-\uffef"
WIDE_BLANKS = "\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
EXAMPLE_CHARACTERS = 4  # enough to see the rule at work, too few to show whose number it was


class Change(NamedTuple):
    """What one rule did to a text."""

    rule: str
    """The rule's name in reports."""

    count: int
    """How many places it changed."""

    example: str
    """The first of them, fit to be shown: without personal data."""


class _Rule(NamedTuple):
    name: str
    pattern: re.Pattern[str]
    replacement: str | Callable[[re.Match[str]], str]


def _narrow(match: re.Match[str]) -> str:
    return "".join(chr(ord(character) - FULL_WIDTH_OFFSET) for character in match[0])


ODD_CHARACTER = re.compile(
    f"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029{INVISIBLE}{JOINERS}{WORD}{SIGN}{WIDE_BLANKS}]"
)
CHARACTER_RULES = (
    _Rule("line_ends", re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]"), "\n"),
    _Rule("control_characters", re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]+"), ""),
    _Rule("invisible_characters", re.compile(f"[{INVISIBLE}]+"), ""),
    _Rule("invisible_characters", re.compile(f"(?:\\A|(?<=[{BESIDE_JOINER}]))[{JOINERS}]+"), ""),
    _Rule("full_width", re.compile(f"[{WORD}]+"), _narrow),
    _Rule(
        "full_width",
        re.compile(f"(?<=[0-9A-Za-z])[{SIGN}]+|(?<![{SIGN}])[{SIGN}]+(?=[0-9A-Za-z])"),
        _narrow,
    ),
    _Rule("blanks", re.compile(f"[{WIDE_BLANKS}]+"), lambda match: " " * len(match[0])),
)
"""Widths after what hides neighbours, in this order; only for texts with an odd character."""

# A lookbehind behind the first character says where a run starts: before it, it would keep the
# search from skipping ahead and halve the speed; without it, long runs would take quadratic time.
BLANK_RULES = (
    _Rule("blanks", re.compile("  (?<=[^ \n]  ) *"), " "),
    _Rule("blanks", re.compile("[ \t](?<![ \t]{2})[ \t]*(?=\n)"), ""),
    _Rule("blanks", re.compile("\\A\\s+"), ""),
    _Rule("blanks", re.compile("\\s(?<!\\s{2})\\s*\\Z"), ""),
    _Rule("blank_lines", re.compile("\n{3,}"), "\n\n"),
)
"""Blanks inside lines before those at their ends, and these before empty lines."""


def normalize(text: str) -> tuple[str, list[Change]]:
    """Normalises a text.

    Returns:
        The text, and what each rule did that did anything.
    """
    changes: list[Change] = []
    before = None
    while text != before:  # what one pass removes may have kept two characters from composing
        before = text
        text = _pass(text, changes)
    return text, changes


def _pass(text: str, changes: list[Change]) -> str:
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
        changes.append(Change("nfc", 1, ""))
    rules = CHARACTER_RULES + BLANK_RULES if ODD_CHARACTER.search(text) else BLANK_RULES
    for rule in rules:
        first = rule.pattern.search(text)
        if first is None:
            continue
        text, count = rule.pattern.subn(rule.replacement, text)
        changes.append(Change(rule.name, count, _show(first, rule.replacement)))
    return text


def _show(match: re.Match[str], replacement: str | Callable[[re.Match[str]], str]) -> str:
    after = replacement if isinstance(replacement, str) else replacement(match)
    cut = EXAMPLE_CHARACTERS
    return f"{ascii(match[0][:cut])} -> {ascii(after[:cut])}"
