"""A measure: one way of measuring one task. Tasks of every kind are made into measures."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from megatron_chimed.evaluation.figures import Figure, MeasuredItem
from megatron_chimed.evaluation.requests import (
    Answer,
    AnswerRequest,
    Dialogue,
    DialogueRequest,
    LikelihoodRequest,
    Likelihoods,
    Refused,
    TaskPrompt,
    TextLikelihood,
    TextRequest,
)

Request: TypeAlias = LikelihoodRequest | AnswerRequest | DialogueRequest | TextRequest
Given: TypeAlias = Likelihoods | Answer | Dialogue | TextLikelihood
Response: TypeAlias = Given | Refused


@dataclass(frozen=True, kw_only=True)
class MeasureEntry:
    """An item as a measure sees it."""

    id: str
    group: str
    request: Request | None
    """None: the item cannot be asked."""
    problem: str | None = None
    """Why it cannot."""
    expected: object = None
    """What responses are compared with; results of another one are not resumed."""


class Measure(Protocol):
    """One way of measuring one task; nothing in it depends on the model."""

    @property
    def name(self) -> str:
        """Such as `cmmlu.letters`; unique, and a file name."""
        ...

    @property
    def title(self) -> str:
        """For the report."""
        ...

    @property
    def main_score(self) -> str:
        """The score by which models are compared item by item."""
        ...

    @property
    def entries(self) -> Sequence[MeasureEntry]:
        """All items in order, also those that cannot be asked."""
        ...

    def judge(self, index: int, response: Given) -> tuple[dict[str, float], dict[str, object]]:
        """The scores and the details of an item."""
        ...

    def figures(self, items: Sequence[MeasuredItem], seed: int) -> list[Figure]:
        """The figures over all items."""
        ...

    def baselines(self) -> list[Figure]:
        """What answers without knowledge would reach."""
        ...


def measured(measure: Measure, index: int, response: Response | None) -> MeasuredItem:
    """What becomes of an item, given the model's response; None if it could not be asked."""
    entry = measure.entries[index]
    problem = response.reason if isinstance(response, Refused) else entry.problem
    if entry.request is None or response is None or isinstance(response, Refused):
        assert problem is not None, f"{entry.id} was not asked, without a reason"
        prompt = "" if entry.request is None else prompt_text(entry.request.prompt)
        return MeasuredItem(
            id=entry.id,
            group=entry.group,
            prompt=prompt,
            response=None,
            scores={},
            details={},
            dropped=problem,
        )
    scores, details = measure.judge(index, response)
    return MeasuredItem(
        id=entry.id,
        group=entry.group,
        prompt=prompt_text(entry.request.prompt, response.num_shots),
        response=_as_json(response),
        scores=scores,
        details=details,
    )


def _as_json(response: Given) -> dict[str, Any]:
    # As JSON has it: what a resumed job reads is what the first one had.
    return json.loads(json.dumps(dataclasses.asdict(response)))


def prompt_text(prompt: TaskPrompt, num_shots: int | None = None) -> str:
    """A prompt for a reader: turns of a conversation with their roles."""
    rendered = prompt.render(num_shots)
    if isinstance(rendered, str):
        return rendered
    lines = [f"system: {rendered.system}"] if rendered.system else []
    for turn in rendered.turns:
        lines.append(f"user: {turn.question}")
        if turn.answer:
            lines.append(f"assistant: {turn.answer}")
    return "\n".join(lines)


def identity_of(measure: Measure) -> str:
    """Hex SHA-256 of all that a measure asks and expects, with the order."""
    asked = [[e.id, e.group, e.problem, repr(e.request), repr(e.expected)] for e in measure.entries]
    text = json.dumps([measure.name, asked], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
