"""Unicode normalisation that changes how a text is written but never its meaning.

Applied: NFC, half-width ASCII letters and digits, one kind of space and line end, no control and
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
EXAMPLE_CHARACTERS = 4  # enough to show the rule's effect, too few to identify a person


class TextChange(NamedTuple):
    """What one rule did to a text."""

    rule: str
    """The rule's name in reports."""

    count: int
    """Places changed."""

    example: str
    """The first change, free of personal data."""


class _RewriteRule(NamedTuple):
    name: str
    pattern: re.Pattern[str]
    replacement: str | Callable[[re.Match[str]], str]


def _narrow(match: re.Match[str]) -> str:
    return "".join(chr(ord(character) - FULL_WIDTH_OFFSET) for character in match[0])


ODD_CHARACTER = re.compile(
    f"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029{INVISIBLE}{JOINERS}{WORD}{SIGN}{WIDE_BLANKS}]"
)
CHARACTER_RULES = (
    _RewriteRule("line_ends", re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]"), "\n"),
    _RewriteRule("control_characters", re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]+"), ""),
    _RewriteRule("invisible_characters", re.compile(f"[{INVISIBLE}]+"), ""),
    _RewriteRule(
        "invisible_characters", re.compile(f"(?:\\A|(?<=[{BESIDE_JOINER}]))[{JOINERS}]+"), ""
    ),
    _RewriteRule("full_width", re.compile(f"[{WORD}]+"), _narrow),
    _RewriteRule(
        "full_width",
        re.compile(f"(?<=[0-9A-Za-z])[{SIGN}]+|(?<![{SIGN}])[{SIGN}]+(?=[0-9A-Za-z])"),
        _narrow,
    ),
    _RewriteRule("blanks", re.compile(f"[{WIDE_BLANKS}]+"), lambda match: " " * len(match[0])),
)
"""Invisible characters before widths, which depend on neighbours; only for texts that match
`ODD_CHARACTER`."""

# A lookbehind after the first character finds the start of a run: before it, the search could not
# skip ahead, at half the speed; without it, long runs would take quadratic time.
BLANK_RULES = (
    _RewriteRule("blanks", re.compile("  (?<=[^ \n]  ) *"), " "),
    _RewriteRule("blanks", re.compile("[ \t](?<![ \t]{2})[ \t]*(?=\n)"), ""),
    _RewriteRule("blanks", re.compile("\\A\\s+"), ""),
    _RewriteRule("blanks", re.compile("\\s(?<!\\s{2})\\s*\\Z"), ""),
    _RewriteRule("blank_lines", re.compile("\n{3,}"), "\n\n"),
)
"""Spaces within lines come before those at line ends, and these before empty lines."""


def normalize(text: str) -> tuple[str, list[TextChange]]:
    """Normalises a text.

    Returns:
        The text, and the changes of each rule that applied.
    """
    changes: list[TextChange] = []
    before = None
    while text != before:  # characters removed in one pass may let their neighbours compose
        before = text
        text = _pass(text, changes)
    return text, changes


def _pass(text: str, changes: list[TextChange]) -> str:
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
        changes.append(TextChange("nfc", 1, ""))
    rules = CHARACTER_RULES + BLANK_RULES if ODD_CHARACTER.search(text) else BLANK_RULES
    for rule in rules:
        first = rule.pattern.search(text)
        if first is None:
            continue
        text, count = rule.pattern.subn(rule.replacement, text)
        changes.append(TextChange(rule.name, count, _show(first, rule.replacement)))
    return text


def _show(match: re.Match[str], replacement: str | Callable[[re.Match[str]], str]) -> str:
    after = replacement if isinstance(replacement, str) else replacement(match)
    cut = EXAMPLE_CHARACTERS
    return f"{ascii(match[0][:cut])} -> {ascii(after[:cut])}"
