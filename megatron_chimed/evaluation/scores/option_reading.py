"""Reads option letters and option texts at a place in a text.

In medical Chinese a capital letter is mostly not an option: CT, B超, D-二聚体, C反应蛋白, 维生素A.
A letter counts only as a whole word that no such term continues, unless the text of its own option
follows it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from megatron_chimed.evaluation.scores.answer_text import plain

_RUN = re.compile(r"[A-Za-z0-9]+")
_OPENERS = re.compile(r"[\s(\[{<「『《【\"'“”‘’]*")
_CLOSERS = re.compile(r"[)\]}>」』》】\"'“”‘’]*")
_LABEL_END = re.compile(r"[)\]】》]*\s*[.、:,)\-—–]*\s*")
# What makes a letter the beginning of a medical term, of a species, or the English article.
_TERM = re.compile(
    r"[ \t]?(?:超|型|族|群|级|类|期|组|细胞|淋巴|反应|抗原|抗体|受体|蛋白|肽|链|因子|波|段|线|峰|区"
    r"|带|环|染色体|基因|病毒|%)|-(?:[A-Za-z0-9]|二聚|反应|葡聚糖|超|型)|'s"
    r"|\.[ \t]?(?:coli|diff|albicans|baumannii|fragilis|cereus|burgdorferi|pertussis|faec|perfr)"
    r"|(?<=[Aa])[ \t]+[A-Za-z0-9\-]{2,}[ \t]+[A-Za-z]{2}"
)
_TERM_BEFORE = re.compile(
    r"(?:[A-Za-z0-9\-]|维生素|维A|血型|抗原|因子|蛋白|vitamin|方案|附录|患者|病人|医生)\s?$",
    re.IGNORECASE,
)
# Between the answers of a list; what is only a comma or a space may as well end the list.
_JOINT = re.compile(
    r"\s*(?:[、/&+]|,?[ \t]*(?:以及|[和及与或]|\band\b|\bor\b))\s*|(?<=[)\]】])(?=[(\[【])",
    re.IGNORECASE,
)
_LOOSE_JOINT = re.compile(r"[ \t]*[,;][ \t]*|[ \t]+")
_CHOOSE = re.compile(r"(?:选择|选)?")
_LIST_GOES_ON = re.compile(
    r"[\s)\]}>」』》】\"'“”‘’]*(?:$|[\s、/&+和及与或。,;:.!<(]|以及|均|都|三项|两项|四项|选项|项|正确|是正确)"
)
_BOUNDARY_AFTER = re.compile(
    r"$|[\s。,、;:.!?()\]}>」』》】\"'“”‘’/&+和及与或的]|以及|而|选项|项|为|是|均|都"
)


@dataclass(frozen=True)
class Reading:
    """Options that a text names in a row."""

    letters: str
    """In the order of the options, each once."""
    end: int
    """Where the text goes on."""
    with_texts: bool
    """Whether the text of an option was among them."""


class Options:
    """The options of a question, in one width.

    Args:
        texts: Text by letter, capitals.
    """

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = {
            letter: plain(text).rstrip("。.;,").casefold() for letter, text in texts.items()
        }
        self.letters = "".join(self.texts)
        # Longest first: 支气管肺炎 before 肺炎.
        self._by_length = sorted(self.texts, key=lambda letter: -len(self.texts[letter]))

    def sort(self, letters: str) -> str:
        """The letters in the order of the options, each once."""
        return "".join(letter for letter in self.letters if letter in letters)

    def read(self, text: str, start: int, *, lower: bool = True) -> Reading | None:
        """The options that a text names from `start` on, such as `A、B和D` or `B. 肺炎`.

        Args:
            text: From `plain`.
            start: Where the first one must begin, after brackets and quotes.
            lower: Whether a small letter counts.
        """
        first = self._one(text, _end(_OPENERS, text, start), lower=lower)
        if first is None:
            return None
        letters, end, with_texts = first
        repeated = text[max(0, start - 1) : start] == "选"
        while (following := self._next(text, end, lower=lower, repeated=repeated)) is not None:
            letters, end = letters + following[0], following[1]
            with_texts = with_texts or following[2]
        return Reading(self.sort(letters), end, with_texts)

    def occurrences(self, text: str) -> Iterator[tuple[str, int, int]]:
        """Letter, start and end of each option text in a text; longer options hide shorter ones."""
        at = 0
        while at < len(text):
            found = self._text_at(text, at)
            if found is None:
                at += 1
            else:
                yield found[0], at, found[1]
                at = found[1]

    def single_letters(self, text: str) -> Iterator[tuple[str, int]]:
        """Capital letters that stand alone and begin or end no medical term, with their ends."""
        for run in _RUN.finditer(text):
            letter, end = run.group(), run.end()
            if letter not in self.texts or _TERM.match(text, end):
                continue
            if not _TERM_BEFORE.search(text, max(0, run.start() - 10), run.start()):
                yield letter, end

    def _next(
        self, text: str, end: int, *, lower: bool, repeated: bool
    ) -> tuple[str, int, bool] | None:
        """What follows in a list; `repeated`: each may have a cue of its own, as in 选A,选B."""
        joint = _JOINT.match(text, end)
        loose = None if joint else _LOOSE_JOINT.match(text, end)
        found = joint or loose
        if found is None:
            return None
        start = _end(_CHOOSE, text, found.end()) if repeated else found.end()
        start = _end(_OPENERS, text, start)
        following = self._one(text, start, lower=lower and not loose)
        if following is None or (loose and not _LIST_GOES_ON.match(text, following[1])):
            return None
        return following

    def _one(self, text: str, at: int, *, lower: bool) -> tuple[str, int, bool] | None:
        """Letters of one run or the option that is spelled out, the end, and which it was."""
        run = _RUN.match(text, at)
        letters = run.group().upper() if run else ""
        if run and letters and self._are_options(run.group(), lower=lower):
            end = _end(_CLOSERS, text, run.end())
            if len(letters) == 1 and (own := self._own_text(text, run.end(), letters)):
                return letters, _end(_CLOSERS, text, own), True
            if not _TERM.match(text, run.end()):
                return letters, end, False
        # Without a space between the letter and its text: BCT检查.
        letter = text[at : at + 1]
        if letter in self.texts and letter and (own := self._own_text(text, at + 1, letter)):
            return letter, _end(_CLOSERS, text, own), True
        spelled = self._text_at(text, at)
        if spelled is None or not _ends_word(text, spelled[1], len(self.texts[spelled[0]])):
            return None
        end = _end(re.compile(rf"\s*\({spelled[0]}\)"), text, spelled[1])
        return spelled[0], _end(_CLOSERS, text, end), True

    def _are_options(self, run: str, *, lower: bool) -> bool:
        if run.islower() and (not lower or len(run) > 1):
            return False
        if not (run.isupper() or run.islower()):
            return False
        letters = run.upper()
        return len(set(letters)) == len(letters) and all(one in self.texts for one in letters)

    def _own_text(self, text: str, at: int, letter: str) -> int | None:
        """Where an option's text ends if it follows its letter."""
        at, own = _end(_LABEL_END, text, at), self.texts[letter]
        return at + len(own) if own and text[at : at + len(own)].casefold() == own else None

    def _text_at(self, text: str, at: int) -> tuple[str, int] | None:
        for letter in self._by_length:
            own = self.texts[letter]
            end = at + len(own)
            if own and text[at:end].casefold() == own and not _cuts_word(text, at, end):
                return letter, end
        return None


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at


def _cuts_word(text: str, start: int, end: int) -> bool:
    """Whether a span begins or ends within a number or a Latin word: 8.5 in 38.5."""
    return _joined(text, start) or _joined(text, end)


def _joined(text: str, at: int) -> bool:
    before, after = text[max(0, at - 1) : at], text[at : at + 1]
    if not (before.isascii() and after.isascii() and before and after):
        return False
    if before.isalpha() and after.isalpha():
        return True
    numeric = "0123456789."
    return (before in numeric and after.isdigit()) or (
        before.isdigit() and after == "." and text[at + 1 : at + 2].isdigit()
    )


def _ends_word(text: str, end: int, length: int) -> bool:
    """Whether an option's text ends here; only short ones are commonly part of another word."""
    return length > 3 or _BOUNDARY_AFTER.match(text, end) is not None
