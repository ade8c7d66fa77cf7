"""The cells of an attitude scale: one item in one wording, order of options and sort of labels."""

import itertools
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from megatron_chimed.evaluation.requests import TaskPrompt
from megatron_chimed.evaluation.scales.scale_files import Labels, Scale, ScaleItem, Wording

Order: TypeAlias = Literal["agree_first", "disagree_first"]
ORDERS: tuple[Order, ...] = ("agree_first", "disagree_first")
_KEY = re.compile(r"\{(statement|options|reply)\}")


@dataclass(frozen=True, kw_only=True)
class ScaleCell:
    """One way of asking one item."""

    item: ScaleItem
    wording: Wording
    paraphrase: int
    """Place among the item's texts of this wording; 0 is the scale's own."""
    order: Order
    """Which end of the points is presented first."""
    labels: Labels
    draw: int = 0
    """Number of the sampled answer, which decides its seed."""

    @property
    def id(self) -> str:
        """Unique in the scale."""
        text = f"{self.item.id}/{self.wording}{self.paraphrase + 1}/{self.order}/{self.labels}"
        return f"{text}/{self.draw}" if self.draw else text

    @property
    def statement(self) -> str:
        """What is agreed or disagreed with."""
        return self.item.texts(self.wording)[self.paraphrase]


def cells_of(
    scale: Scale, labels: Sequence[Labels], wordings: Sequence[Wording], draws: int = 1
) -> list[ScaleCell]:
    """Every cell of every item, in order."""
    return [
        ScaleCell(
            item=item,
            wording=wording,
            paraphrase=paraphrase,
            order=order,
            labels=kind,
            draw=draw,
        )
        for item in scale.items
        for wording in wordings
        for paraphrase, kind, order, draw in itertools.product(
            range(len(item.texts(wording))), labels, ORDERS, range(draws)
        )
    ]


def presented(order: Order, num_points: int) -> Sequence[int]:
    """Places of the scale's points as the respondent sees them."""
    return range(num_points) if order == "agree_first" else range(num_points - 1, -1, -1)


def options(scale: Scale, order: Order, labels: Labels) -> tuple[str, ...]:
    """What is answered to choose each option, as presented."""
    count = len(scale.points)
    if labels == "words":
        return tuple(scale.points[place].words for place in presented(order, count))
    names = string.ascii_uppercase if labels == "letters" else [str(n + 1) for n in range(count)]
    return tuple(names[:count])


def prompt_of(
    scale: Scale, statement: str, order: Order, labels: Labels, *, is_chat: bool, system: str = ""
) -> TaskPrompt:
    """The question of a cell."""
    words = [scale.points[place].words for place in presented(order, len(scale.points))]
    if labels == "words":
        lines = [f"- {text}" for text in words]
    else:
        names = options(scale, order, labels)
        lines = [f"{name}. {text}" for name, text in zip(names, words, strict=True)]
    filled = {"statement": statement, "options": "\n".join(lines), "reply": scale.reply(labels)}
    # In one pass, since a statement may itself hold such a key.
    text = _KEY.sub(lambda found: filled[found.group(1)], scale.prompt)
    return TaskPrompt(
        question=text if is_chat else text + scale.cue, is_chat=is_chat, system=system
    )
