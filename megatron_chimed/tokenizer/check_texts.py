"""Texts made from a vocabulary, on which two tokenizers of it are most likely to differ."""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

RUN_CHARACTERS = "`~-=*_.#!?,、。，！？…—～·　 \n\t0a的"
RUN_LENGTHS = (*range(2, 20), 31, 32, 33, 64, 100)
MAX_RUNS = 4000
OVERLAPS_PER_PIECE = 2
CHAINS = 10_000
LONG_TEXTS = 40
LONG_PIECES = 400


def texts_of_vocabulary(pieces: Sequence[str], entries: Sequence[str]) -> Iterator[str]:
    """Texts in the order of what they try; the same for the same vocabulary.

    Every piece alone; for pieces `ab` and `bc` the text `abc`, and chains of such overlaps; runs of
    one character; literal entries such as `<0x0A>` between pieces; random and long texts.

    Args:
        pieces: The pieces that stand for text, with spaces for U+2581.
        entries: Entries that do not, such as byte and control pieces.
    """
    random_ = random.Random(len(pieces))
    yield from pieces
    words = [piece for piece in pieces if len(piece) > 1]
    if not words:
        return
    yield from _runs(pieces)
    starting = defaultdict(list)
    for word in words:
        starting[word[0]].append(word)
    for word in words:
        following = starting[word[-1]]
        for other in random_.sample(following, min(OVERLAPS_PER_PIECE, len(following))):
            yield word + other[1:]
    for _ in range(min(CHAINS, 4 * len(words))):
        yield _chain(words, starting, random_)
        yield "".join(random_.choices(pieces, k=random_.randint(2, 12)))
        yield "".join(random_.choice(word) for word in random_.choices(words, k=12))
    for entry in entries:
        left, right = random_.choices(words, k=2)
        yield left + entry + right
    for _ in range(LONG_TEXTS):
        yield "".join(random_.choices(pieces, k=LONG_PIECES))


def _runs(pieces: Sequence[str]) -> Iterator[str]:
    """Runs of each character that repeats in a piece or is known for trouble."""
    doubled = {a for piece in pieces for a, b in zip(piece, piece[1:], strict=False) if a == b}
    runs = [c * n for c in sorted(doubled.union(RUN_CHARACTERS)) for n in RUN_LENGTHS]
    yield from random.Random(0).sample(runs, min(MAX_RUNS, len(runs)))


def _chain(words: Sequence[str], starting: dict[str, list[str]], random_: random.Random) -> str:
    """Words of which each begins with the last character of the one before."""
    text = random_.choice(words)
    for _ in range(random_.randint(2, 8)):
        following = starting.get(text[-1])
        if not following:
            break
        text += random_.choice(following)[1:]
    return text
