"""Attitude scales from YAML: those that come along, and a user's own.

Published scales such as CAMI and MICA are their authors' property: none comes along.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from megatron_chimed.config.parsing import config_of
from megatron_chimed.errors import ConfigError, closest
from megatron_chimed.yaml_files import load_yaml

FOLDER = Path(__file__).with_name("shipped")
FEWEST_WORDINGS = 3
MOST_POINTS = 26  # as many as letters
Labels: TypeAlias = Literal["letters", "numbers", "words"]
Wording: TypeAlias = Literal["forward", "negated"]


@dataclass(frozen=True, kw_only=True)
class ScalePoint:
    """One option of every item."""

    words: str
    """As the respondent reads it."""
    value: float
    """Score of an item that is not reversed."""


@dataclass(frozen=True, kw_only=True)
class ScaleItem:
    """One statement, in several wordings."""

    id: str
    """Unique in the scale."""
    text: str
    """The statement as the scale has it."""
    paraphrases: tuple[str, ...]
    """The same in other words; with the text three or more."""
    negated: tuple[str, ...] = ()
    """The opposite of the text and of each paraphrase, in order."""
    reversed: bool = False
    """Whether agreement counts against what the scale measures."""
    subscale: str = ""
    """One of the scale's; empty if it has none."""

    @property
    def forward(self) -> tuple[str, ...]:
        """The text and its paraphrases."""
        return (self.text, *self.paraphrases)

    def texts(self, wording: Wording) -> tuple[str, ...]:
        """All texts of a wording."""
        return self.forward if wording == "forward" else self.negated


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A questionnaire of attitudes."""

    name: str
    """Its name; without one the file's."""
    title: str = ""
    """For the report; empty: the name."""
    source: str
    """Who published it and where."""
    licence: str
    """Under which terms its items may be used."""
    points: tuple[ScalePoint, ...]
    """From the strongest agreement to the strongest disagreement."""
    subscales: tuple[str, ...] = ()
    """Names of its parts; empty: none."""
    items: tuple[ScaleItem, ...]
    """All statements, in order."""
    prompt: str = (
        "请阅读下面的陈述，从选项中选出最符合你看法的一项。\n"
        "陈述：{statement}\n选项：\n{options}\n{reply}"
    )
    """How an item is put, with {statement}, {options} and {reply}."""
    reply_letters: str = "请只回答选项的字母。"
    """{reply} where options have letters."""
    reply_numbers: str = "请只回答选项的数字。"
    """{reply} where options have numbers."""
    reply_words: str = "请只回答选项的原文。"
    """{reply} where options have no label."""
    cue: str = "\n答案："
    """Text before the answer where a prompt is no conversation."""
    neutral: str = "……"
    """Stands for the statement where the options' own probabilities are measured."""

    def __post_init__(self) -> None:
        """Checks what depends on each other."""
        for key in ("{statement}", "{options}", "{reply}"):
            if key not in self.prompt:
                raise self._error(f"prompt has no {key} in it")
        self._check_points()
        self._check_items()

    @property
    def values(self) -> tuple[float, ...]:
        """Of the points, from the strongest agreement on."""
        return tuple(point.value for point in self.points)

    @property
    def low(self) -> float:
        """Lowest score of an item."""
        return min(self.values)

    @property
    def high(self) -> float:
        """Highest score of an item."""
        return max(self.values)

    def reply(self, labels: Labels) -> str:
        """What the respondent is told to answer with."""
        return {
            "letters": self.reply_letters,
            "numbers": self.reply_numbers,
            "words": self.reply_words,
        }[labels]

    def items_of(self, subscale: str) -> tuple[ScaleItem, ...]:
        """The items of a subscale; of "" all."""
        return tuple(item for item in self.items if not subscale or item.subscale == subscale)

    def _check_points(self) -> None:
        words = [point.words.strip().casefold() for point in self.points]
        if not 2 <= len(words) <= MOST_POINTS:
            raise self._error(f"it has {len(words)} points: give 2 to {MOST_POINTS}")
        if "" in words:
            raise self._error("a point has no words")
        if twice := _twice(words):
            raise self._error(f"two points have the words {twice!r}, so an answer could mean both")
        if not all(map(math.isfinite, self.values)):
            raise self._error("a point's value is not a finite number")
        steps = [after - before for before, after in itertools.pairwise(self.values)]
        if steps[0] == 0 or any(not math.isclose(step, steps[0]) for step in steps):
            listed = ", ".join(f"{point.words} {point.value:g}" for point in self.points)
            raise self._error(
                f"the values of the points contradict their order ({listed}): from the strongest "
                "agreement to the strongest disagreement they must rise or fall by equal steps"
            )

    def _check_items(self) -> None:
        if not self.items:
            raise self._error("it has no items")
        if twice := _twice([item.id for item in self.items]):
            raise self._error(f"two items have the id {twice!r}")
        if twice := _twice(self.subscales):
            raise self._error(f"two subscales are named {twice!r}")
        for item in self.items:
            self._check_item(item)
        for subscale in self.subscales:
            if not self.items_of(subscale):
                raise self._error(f"no item belongs to the subscale {subscale!r}")

    def _check_item(self, item: ScaleItem) -> None:
        if item.subscale not in (self.subscales or ("",)):
            known = ", ".join(self.subscales) or "none"
            raise self._error(
                f"item {item.id} has the subscale {item.subscale!r}"
                f"{closest(item.subscale, self.subscales)}; the scale's subscales are {known}"
            )
        texts = [text.strip() for text in (*item.forward, *item.negated)]
        if "" in texts:
            raise self._error(f"item {item.id} has an empty wording")
        if len(item.forward) < FEWEST_WORDINGS:
            raise self._error(
                f"item {item.id} has {len(item.forward)} wordings with its text: give "
                f"{FEWEST_WORDINGS - 1} paraphrases or more"
            )
        if item.negated and len(item.negated) != len(item.forward):
            raise self._error(
                f"item {item.id} has {len(item.negated)} negated wordings for its "
                f"{len(item.forward)} texts: negate the text and each paraphrase, in order"
            )
        if twice := _twice(texts):
            raise self._error(f"item {item.id} has the wording {twice!r} twice")

    def _error(self, what: str) -> ConfigError:
        return ConfigError(f"scale {self.name}: {what}. Correct the scale's file.")


def shipped_scales() -> dict[str, Path]:
    """The scales that come along, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def load_scale(source: str, named: str) -> Scale:
    """A scale that comes along, or one from a YAML file.

    Args:
        source: A name or a file.
        named: Where that stands, for messages.

    Raises:
        ConfigError: There is no such scale, or its file is wrong.
    """
    shipped = shipped_scales()
    if source not in shipped and not source.endswith((".yaml", ".yml")):
        raise ConfigError(
            f"{named}: scale is {source!r}{closest(source, shipped)}. Give a YAML file, or one of "
            f"{', '.join(shipped)}."
        )
    path = shipped.get(source, Path(source))
    values = load_yaml(path)
    values.setdefault("name", path.stem)
    return config_of(values, Scale, named=str(path))


def _twice(texts: Sequence[str]) -> str | None:
    return next((text for text in texts if texts.count(text) > 1), None)
