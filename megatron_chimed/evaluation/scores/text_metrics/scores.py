"""Scores of generated texts against references, in one of three modes.

| mode | BLEU | ROUGE | tokens |
|---|---|---|---|
| `standard` | corpus, sacrebleu's | counting, rouge_score's | `zh`; characters with words whole |
| `chimed_compat` | corpus, nltk's, of strings | sets, of the package rouge | spaced characters |
| `llamafactory` | mean of texts, nltk's | sets, of rouge-chinese | characters; jieba's words |

Numbers of different modes differ by tens of points, so a figure is printed with its signature.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from megatron_chimed import __version__
from megatron_chimed.errors import ConfigError, DataError, closest
from megatron_chimed.evaluation.scores.statistics import DRAWS, bootstrap_interval
from megatron_chimed.evaluation.scores.text_metrics.bleu import (
    MAX_ORDER,
    bleu,
    bleu_counts,
    ngrams,
    weighted_bleu,
)
from megatron_chimed.evaluation.scores.text_metrics.rouge import rouge_l, rouge_n
from megatron_chimed.evaluation.scores.text_metrics.set_rouge import (
    chinese_sentences,
    counted_rouge_l,
    dot_sentences,
    set_rouge_l,
    set_rouge_n,
)
from megatron_chimed.evaluation.scores.text_metrics.tokens import (
    sacrebleu_zh_tokens,
    spaced,
    word_tokens,
)

TextMode: TypeAlias = Literal["standard", "chimed_compat", "llamafactory"]
MODES: tuple[TextMode, ...] = get_args(TextMode)

_AUTHORS_WEIGHTS = {"bleu_2": (0.5, 0.5), "bleu_3": (0.333, 0.333, 0.334)}
_QUARTERS = (0.25, 0.25, 0.25, 0.25)
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class TextFigure:
    """One score over all texts."""

    value: float
    """In percent; distinct-n too. Lengths are in characters."""
    low: float | None
    """Lower end of the 95 % interval by bootstrap over texts; None for distinct-n, which falls
    where a resample repeats texts."""
    high: float | None
    """Upper end."""
    per_text: np.ndarray | None
    """float64 `[texts]`, whose mean is the value; None for scores of a corpus."""
    signature: str
    """Mode, tokenizer, smoothing and version: what must be equal to compare two values."""


@dataclass(frozen=True, kw_only=True)
class TextScores:
    """What generated texts score."""

    figures: Mapping[str, TextFigure]
    """By name, such as `bleu_4` or `rouge_l`."""
    num_texts: int
    """All texts; none is left out."""
    num_empty: int
    """Generated texts that are empty: they score 0."""
    num_empty_references: int
    """References that are empty: texts score 0 against them."""


def score_texts(
    generated: Sequence[str],
    references: Sequence[str],
    *,
    mode: TextMode = "standard",
    seed: int = 0,
    draws: int = DRAWS,
) -> TextScores:
    """BLEU, ROUGE, distinct-n and lengths of texts against one reference each.

    Args:
        generated: What a model wrote, without its reasoning.
        references: Reference of each.
        mode: Whose definitions.
        seed: Of the bootstrap.
        draws: Resamples of the bootstrap.

    Raises:
        ConfigError: The mode is unknown, or needs jieba and jieba is not installed.
        DataError: The numbers of texts and references differ, or there are none.
    """
    if mode not in MODES:
        raise ConfigError(f"unknown mode of text scores {mode!r}{closest(mode, MODES)}")
    if len(generated) != len(references) or not generated:
        raise DataError(
            f"text scores need one reference for each text: {len(generated)} texts and "
            f"{len(references)} references."
        )
    draw = _Bootstrap(len(generated), seed, draws)
    figures = _SCORERS[mode](list(generated), list(references), draw)
    return TextScores(
        figures={**figures, **_diversity(list(generated), draw)},
        num_texts=len(generated),
        num_empty=sum(not text.strip() for text in generated),
        num_empty_references=sum(not text.strip() for text in references),
    )


def signature(mode: TextMode, metric: str, **settings: object) -> str:
    """What defines a figure, in the manner of sacrebleu: `bleu_4|mode:standard|tok:zh|...`."""
    parts = [f"{name}:{value}" for name, value in settings.items()]
    return "|".join([metric, f"mode:{mode}", *parts, f"version:{__version__}"])


class _Bootstrap:
    """Intervals of scores of a corpus and of means, from the same seed."""

    def __init__(self, size: int, seed: int, draws: int) -> None:
        self._size, self._seed, self._draws = size, seed, draws

    def of_mean(self, values: np.ndarray, described: str) -> TextFigure:
        low, high = bootstrap_interval(values, seed=self._seed, draws=self._draws)
        return TextFigure(
            value=float(values.mean()), low=low, high=high, per_text=values, signature=described
        )

    def sums(self, counts: np.ndarray) -> np.ndarray:
        """Sums `[1 + draws, columns]` of counts `[texts, columns]`: of all, then of resamples."""
        rng = np.random.default_rng(self._seed)
        step = max(1, _CHUNK // counts.size)
        sums = [counts.sum(axis=0, keepdims=True)]
        for start in range(0, self._draws, step):
            size = (min(step, self._draws - start), self._size)
            sums.append(counts[rng.integers(self._size, size=size)].sum(axis=1))
        return np.concatenate(sums)

    def of_corpus(self, scores: np.ndarray, described: str) -> TextFigure:
        """A figure from the scores of `sums`."""
        low, high = np.percentile(scores[1:], (2.5, 97.5)).tolist()
        return TextFigure(
            value=float(scores[0]), low=low, high=high, per_text=None, signature=described
        )


def _standard(
    generated: list[str], references: list[str], draw: _Bootstrap
) -> dict[str, TextFigure]:
    pairs = list(zip(generated, references, strict=True))
    counts = np.stack(
        [bleu_counts(sacrebleu_zh_tokens(a), sacrebleu_zh_tokens(b)) for a, b in pairs]
    )
    sums, figures = draw.sums(counts), {}
    for order in range(1, MAX_ORDER + 1):
        described = signature("standard", f"bleu_{order}", tok="zh", smooth="exp", over="corpus")
        figures[f"bleu_{order}"] = draw.of_corpus(bleu(sums, order), described)
    words = [(word_tokens(a), word_tokens(b)) for a, b in pairs]
    rouges: dict[str, Callable[[list[str], list[str]], Any]] = {
        "rouge_1": lambda a, b: rouge_n(a, b, 1),
        "rouge_2": lambda a, b: rouge_n(a, b, 2),
        "rouge_l": rouge_l,
    }
    for name, rouge in rouges.items():
        values = 100 * np.array([rouge(a, b).f1 for a, b in words])
        described = signature(
            "standard", name, tok="characters-words", counts="clipped", over="mean"
        )
        figures[name] = draw.of_mean(values, described)
    return figures


def _chimed_compat(
    generated: list[str], references: list[str], draw: _Bootstrap
) -> dict[str, TextFigure]:
    pairs = [(spaced(a), spaced(b)) for a, b in zip(generated, references, strict=True)]
    counts = np.stack([bleu_counts(a, b, 3, least_total=1) for a, b in pairs])
    sums, figures = draw.sums(counts), {}
    for name, weights in _AUTHORS_WEIGHTS.items():
        described = signature("chimed_compat", name, tok="string", smooth="none", over="corpus")
        bleus = np.array([weighted_bleu(row, weights) for row in sums])
        figures[name] = draw.of_corpus(bleus, described)
    sentences = [(dot_sentences(a), dot_sentences(b)) for a, b in pairs]
    for name, values in _set_rouges(sentences, set_rouge_l).items():
        described = signature("chimed_compat", name, tok="spaced", counts="sets", over="mean")
        figures[name] = draw.of_mean(values, described)
    return figures


def _llamafactory(
    generated: list[str], references: list[str], draw: _Bootstrap
) -> dict[str, TextFigure]:
    cut = _jieba_cutter()
    pairs = list(zip(generated, references, strict=True))
    bleus = [
        weighted_bleu(bleu_counts(a, b, least_total=1), _QUARTERS, smooth=True) for a, b in pairs
    ]
    described = signature("llamafactory", "bleu_4", tok="characters", smooth="3", over="mean")
    figures = {"bleu_4": draw.of_mean(np.array(bleus), described)}
    words = [(" ".join(cut(a)), " ".join(cut(b))) for a, b in pairs]
    sentences = [
        (chinese_sentences(a), chinese_sentences(b)) if a.split() and b.split() else ([], [])
        for a, b in words
    ]
    for name, values in _set_rouges(sentences, counted_rouge_l).items():
        kind = "subsequence" if name == "rouge_l" else "sets"
        described = signature("llamafactory", name, tok="jieba", counts=kind, over="mean")
        figures[name] = draw.of_mean(values, described)
    return figures


def _set_rouges(
    sentences: Sequence[tuple[list[list[str]], list[list[str]]]],
    longest: Callable[[list[list[str]], list[list[str]]], float],
) -> dict[str, np.ndarray]:
    return {
        "rouge_1": 100 * np.array([set_rouge_n(a, b, 1) for a, b in sentences]),
        "rouge_2": 100 * np.array([set_rouge_n(a, b, 2) for a, b in sentences]),
        "rouge_l": 100 * np.array([longest(a, b) for a, b in sentences]),
    }


def _jieba_cutter() -> Callable[[str], Any]:
    try:
        import jieba
    except ImportError:
        raise ConfigError(
            "mode llamafactory divides words with jieba, which is not installed. Install it (pip "
            "install jieba), or take the mode standard."
        ) from None
    jieba.setLogLevel(60)  # it reports loading its dictionary as if that were an error
    return jieba.cut


def _diversity(generated: list[str], draw: _Bootstrap) -> dict[str, TextFigure]:
    """Share of different n-grams among all n-grams of all texts, and the length of texts."""
    words = [word_tokens(text) for text in generated]
    figures = {}
    for order in (1, 2):
        value = distinct(words, order)
        described = signature(
            "standard", f"distinct_{order}", tok="characters-words", over="corpus"
        )
        figures[f"distinct_{order}"] = TextFigure(
            value=value, low=None, high=None, per_text=None, signature=described
        )
    lengths = np.array([len(text.strip()) for text in generated], float)
    figures["length"] = draw.of_mean(
        lengths, signature("standard", "length", tok="characters", over="mean")
    )
    return figures


def distinct(texts: Sequence[Sequence[str]], order: int) -> float:
    """Different n-grams of all texts over all their n-grams, in percent; 0 without any.

    It falls with the number of texts: compare models on the same prompts only.

    Source: Li et al., A diversity-promoting objective function for neural conversation (2016).
    """
    counts = sum((ngrams(words, order) for words in texts), start=ngrams([], order))
    total = counts.total()
    return 100 * len(counts) / total if total else 0.0


_SCORERS: Mapping[TextMode, Callable[[list[str], list[str], _Bootstrap], dict[str, TextFigure]]] = {
    "standard": _standard,
    "chimed_compat": _chimed_compat,
    "llamafactory": _llamafactory,
}
