"""A regular expression that cuts out the words which sentencepiece forms before all other pieces.

Let the *top words* be the pieces of the highest score that merges of that score alone form. While
such merges are left, sentencepiece makes the leftmost, and the result is the leftmost-longest
matching of the top words: no merge crosses the end of a word while one inside it, further left, is
left; and a word cannot grow over its end, since the grown word would have been the longer match.

A top word is *closed* if no other piece is built with it: once matched, it stays as it is. Closed
words become segments of their own, which `ignore_merges` looks up whole, and the text between two
of them is a segment of its own that is merged by the list. Order among closed words is thus no
matter of the list, and their characters need not be pieces.

`ignore_merges` looks up every segment, also one that spells an entry of the vocabulary which
sentencepiece never gives to text: `<0x0A>`, or a piece that cannot be formed. Such a segment is cut
after its first symbol.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence, Set

from megatron_chimed.tokenizer.bpe_merges import Builds, symbols_of

_FANOUT = 8  # alternatives that are tried one after the other, before ranges split them


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopWords:
    """The top words of a model."""

    closed: Set[str]
    """Those that no other piece is built with."""

    open: Set[str]
    """The others."""


def top_words(builds: Builds) -> TopWords:
    """The top words of a model, by whether other pieces are built with them."""
    scores = builds.scores
    top = max(scores[piece] for piece in builds.pairs)
    words = {
        piece
        for piece in builds.pairs
        if scores[piece] == top and all(scores[part] == top for part in builds.parts(piece))
    }
    used = {part for piece, pair in builds.pairs.items() if piece not in words for part in pair}
    return TopWords(closed=words - used, open=words & used)


def listed_pieces(builds: Builds, words: TopWords) -> set[str]:
    """The pieces that the merge list must still make: all but closed words of no further use."""
    others = builds.pairs.keys() - words.closed
    return {part for piece in others for part in builds.parts(piece)}


def segments_pattern(
    builds: Builds, words: TopWords, entries: Iterable[str], *, splits_unknown: bool
) -> str:
    r"""The Oniguruma expression whose matches, one after the other, are the segments of a text.

    Args:
        builds: The model's.
        words: The model's top words.
        entries: The entries of the vocabulary that text never gets.
        splits_unknown: Whether the model spells unknown characters in bytes, one by one; otherwise
            adjacent ones are one token and may not be cut apart.

    Raises:
        ValueError: An entry that text never gets cannot be cut; the argument is the entry.
    """
    closed = _longest(words.closed, words.open)
    first = _one_of({word[0] for word in words.closed | words.open}, negated=True)
    between = [f"{first}++", r"(?!\g<word>)[\s\S]"]
    if words.open:
        between.insert(1, _longest(words.open, words.closed))
    segments = [
        r"\g<word>",
        *_cuts(builds, words, entries, splits_unknown),
        f"(?:{'|'.join(between)})+",
    ]
    return rf"(?<word>{closed}){{0}}(?<end>\g<word>|\z){{0}}{'|'.join(segments)}"


def _cuts(
    builds: Builds, words: TopWords, entries: Iterable[str], splits_unknown: bool
) -> list[str]:
    """Cuts segments that spell an entry that text never gets after their first symbol."""
    cuts = []
    for entry in sorted(entries, key=lambda entry: (-len(entry), entry)):
        if len(entry) < 2 or _has_closed(entry, words):
            continue
        symbols = symbols_of(entry, builds.scores)
        known = [symbol in builds.scores for symbol in symbols]
        places = [i for i in range(1, len(known)) if splits_unknown or any(known[i - 1 : i + 1])]
        if not places:
            raise ValueError(entry)
        start = "".join(symbols[: places[0]])
        cuts.append(rf"{_literal(start)}(?={_literal(entry[len(start) :])}\g<end>)")
    return cuts


def _has_closed(text: str, words: TopWords) -> bool:
    """Whether a closed word is cut out of a text."""
    longest = max(map(len, words.closed | words.open), default=0)
    at = 0
    while at < len(text):
        for size in range(min(longest, len(text) - at), 1, -1):
            if text[at : at + size] in words.closed:
                return True
            if text[at : at + size] in words.open:
                break
        else:
            size = 1
        at += size
    return False


def _longest(words: Set[str], others: Set[str]) -> str:
    """Matches the longest of `words`, unless one of `others` is longer still."""
    longer: dict[str, list[str]] = {}
    for other in others:
        for size in range(2, len(other)):
            if other[:size] in words:
                longer.setdefault(other[:size], []).append(other[size:])
    return _branches(sorted(words), "", longer)


def _branches(words: Sequence[str], prefix: str, longer: Mapping[str, Sequence[str]]) -> str:
    """The expression for what follows a prefix that all of some sorted words share."""
    ends = words[0] == prefix
    following: dict[str, list[str]] = {}
    for word in words[ends:]:
        following.setdefault(word[len(prefix)], []).append(word)
    rests = {c: _branches(group, prefix + c, longer) for c, group in following.items()}
    leaves = [character for character, rest in rests.items() if not rest]
    options = [_one_of(leaves)] if leaves else []
    branches = [(character, rest) for character, rest in rests.items() if rest]
    options += [_by_range(branches)] if branches else []
    if ends:
        options.append("".join(f"(?!{_literal(text)})" for text in longer.get(prefix, ())))
    return options[0] if len(options) == 1 else f"(?:{'|'.join(options)})"


def _by_range(branches: Sequence[tuple[str, str]]) -> str:
    """Alternatives that differ in their first character, found by its range."""
    if len(branches) <= _FANOUT:
        return "(?:" + "|".join(_literal(character) + rest for character, rest in branches) + ")"
    size = -(-len(branches) // _FANOUT)
    parts = [branches[i : i + size] for i in range(0, len(branches), size)]
    return (
        "(?:"
        + "|".join(
            f"(?=[{_literal(part[0][0])}-{_literal(part[-1][0])}]){_by_range(part)}"
            for part in parts
        )
        + ")"
    )


def _one_of(characters: Iterable[str], *, negated: bool = False) -> str:
    """A class of characters, neighbours as ranges."""
    codes = sorted(map(ord, characters))
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    spans = (
        _literal(chr(low)) + (f"-{_literal(chr(high))}" if high > low else "")
        for low, high in ranges
    )
    return f"[{'^' if negated else ''}{''.join(spans)}]"


def _literal(text: str) -> str:
    return "".join(c if c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)
