"""The merge list with which the `tokenizers` library gives the ids of a sentencepiece BPE model.

sentencepiece merges, of all adjacent pairs that form a piece, the one whose piece has the highest
score, and of equal scores the leftmost. `tokenizers` applies a list of pairs: the earlier pair
first, of equal pairs the leftmost. Two facts make the two comparable:

1. A piece that is formed anywhere is formed by the merges that form it from its own text alone: no
   merge crosses its ends, so those inside follow one another as if nothing else were there. Hence
   each piece has one *build*, or can never be formed, and the list needs one pair for each.
2. With distinct scores, the list in order of scores is therefore exact. Pieces of equal score need
   an order in which the list never makes a merge that sentencepiece does not. The first such merge
   would join a symbol `c` to a symbol `d` on its right although sentencepiece joins `c` to the
   `l` on its left. It is impossible if the merges that make `lc`, as far as they may be
   late, are listed before those of equal score that make `cd`: `precedences` lists these pairs.
   (If sentencepiece joins `d` to its right instead, all merges that may be late are to the right
   of `cd`, and equal scores cannot delay them.)

An order exists unless the precedences form a circle. The words that naive extension of a vocabulary
adds, all of one score, do (`ab`, `ba`): those are matched by a regular expression instead, see
`leftmost_words`.
"""

import dataclasses
import functools
import graphlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

from megatron_chimed.tokenizer.model_proto import NORMAL

Pair = tuple[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Builds:
    """How sentencepiece forms the pieces of a BPE model."""

    scores: Mapping[str, float]
    """Every normal piece and its score."""

    pairs: Mapping[str, Pair]
    """Every piece of two or more characters that can be formed, and its last merge."""

    def is_reachable(self, piece: str) -> bool:
        """Whether sentencepiece gives this piece to any text."""
        return piece in self.pairs or (len(piece) == 1 and piece in self.scores)

    def parts(self, piece: str) -> Iterator[str]:
        """The piece and all longer than a character that its build goes through."""
        pair = self.pairs.get(piece)
        if pair is not None:
            yield piece
            yield from self.parts(pair[0])
            yield from self.parts(pair[1])

    @functools.cached_property
    def lowest(self) -> Mapping[str, float]:
        """The lowest score in the build of each piece, of characters infinity."""
        found = {piece: math.inf for pair in self.pairs.values() for piece in pair}
        for piece in sorted(self.pairs, key=len):
            found[piece] = min(self.scores[piece], *(found[part] for part in self.pairs[piece]))
        return found


def builds_of(proto: Any) -> Builds:
    """Forms each piece from its characters. Takes about 1 s for 50,000 pieces."""
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == NORMAL}
    pairs = {
        piece: pair
        for piece in scores
        if len(piece) > 1 and (pair := _last_merge(piece, scores)) is not None
    }
    return Builds(scores=scores, pairs=pairs)


def _last_merge(piece: str, scores: Mapping[str, float]) -> Pair | None:
    """The merge that completes a piece from its characters, or None if none does."""
    symbols = symbols_of(piece, scores, at_least=2)
    return (symbols[0], symbols[1]) if len(symbols) == 2 else None


def symbols_of(text: str, scores: Mapping[str, float], *, at_least: int = 1) -> list[str]:
    """What sentencepiece makes of a short text: pieces, and characters that are none.

    Stops when `at_least` symbols are left. Quadratic in the length.
    """
    symbols = list(text)
    while len(symbols) > at_least:
        best, at = None, -1
        for i in range(len(symbols) - 1):
            score = scores.get(symbols[i] + symbols[i + 1])
            if score is not None and (best is None or score > best):
                best, at = score, i
        if best is None:
            break
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return symbols


def precedences(builds: Builds, listed: Set[str]) -> dict[str, set[str]]:
    """For each piece, those of equal score that must be before it in the list.

    Args:
        builds: The model's.
        listed: Pieces that the list makes.
    """
    scores = builds.scores
    count = Counter(scores[piece] for piece in listed)
    tied = {piece for piece in listed if count[scores[piece]] > 1}
    starting: dict[str, list[str]] = defaultdict(list)
    for piece in listed:
        starting[builds.pairs[piece][0]].append(piece)
    before: dict[str, set[str]] = defaultdict(set)
    for whole in listed:
        left, middle = builds.pairs[whole]
        late = [part for part in {whole, *builds.parts(left)} if part in tied]
        for wrong in starting[middle] if late else ():
            if not _may_be_late(builds, whole, wrong):
                continue
            right = builds.pairs[wrong][1]
            for part in late:
                later = {wrong}
                if scores[part] < scores[wrong]:
                    later = {*builds.parts(right)}
                    later |= set() if part == whole else {*builds.parts(middle)}
                for other in later - {part}:
                    if scores[other] == scores[part]:
                        before[other].add(part)
    return before


def _may_be_late(builds: Builds, whole: str, wrong: str) -> bool:
    """Whether sentencepiece may make `lc` although the list, in order of scores, makes `cd`."""
    scores, (left, middle), right = builds.scores, builds.pairs[whole], builds.pairs[wrong][1]
    if scores[whole] < min(scores[wrong], builds.lowest[right]):
        return False  # sentencepiece makes `cd` first, too
    last = scores[right] if right in builds.pairs else math.inf
    if min(scores[whole], builds.lowest[middle]) <= last:
        return True
    # Whether the list, too, makes all of `lc` before it makes `d`; of equal pairs the leftmost.
    return not (builds.lowest[left] > last or (left == right and builds.lowest[left] == last))


def in_order(builds: Builds, listed: Set[str]) -> list[str]:
    """The pieces of a list of merges, first to last.

    Raises:
        graphlib.CycleError: No order gives sentencepiece's ids; its second argument is the circle.
    """
    before = precedences(builds, listed)
    place = {piece: i for i, piece in enumerate(builds.scores)}
    by_score = sorted(listed, key=lambda piece: (-builds.scores[piece], place[piece]))
    sorter = graphlib.TopologicalSorter({piece: before.get(piece, ()) for piece in by_score})
    rank = {piece: i for i, piece in enumerate(sorter.static_order())}
    return sorted(by_score, key=lambda piece: (-builds.scores[piece], rank[piece]))


def without_own_piece(builds: Builds, pieces: Iterable[str]) -> list[str]:
    """The pieces with a character that is no piece: a merge list cannot form them."""
    return [piece for piece in pieces if any(part not in builds.scores for part in piece)]
