"""What a judge is asked, and how the verdict is read from what it says."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from megatron_chimed.evaluation.scores.answer_text import without_reasoning

NO_VERDICT = "judge gave no verdict"


@dataclass(frozen=True, kw_only=True)
class JudgeCall:
    """One question to a judge."""

    id: str
    """Names the item, the models and the order, so it is not for people."""
    group: str
    """The models."""
    prompt: str
    """For a model."""
    shown: Mapping[str, str] = field(default_factory=dict)
    """For people: texts by column; empty if people are not asked this."""
    fields: tuple[str, ...]
    """What is decided, such as aspects."""
    values: tuple[str, ...]
    """What each field can be, in lower case."""

    @property
    def blind_id(self) -> str:
        """Names the call to people, without naming models; of other texts it is another one."""
        return hashlib.sha256(f"{self.id}\n{self.prompt}".encode("utf-8", "replace")).hexdigest()[
            :12
        ]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What became of a call."""

    call: JudgeCall
    verdict: Mapping[str, str] | None
    """A value for each field; None: there is none."""
    problem: str | None = None
    """Why there is none."""


def read_verdict(call: JudgeCall, text: str) -> dict[str, str] | None:
    """The verdict in the last JSON object of a text that has all fields; None if there is none."""
    found = None
    for values in _json_objects(without_reasoning(text)):
        verdict = {name: _value(values.get(name)) for name in call.fields}
        if all(value in call.values for value in verdict.values()):
            found = verdict
    return found


def identity_of_calls(calls: Sequence[JudgeCall]) -> str:
    """Hex SHA-256 of all that a judge is asked, with the order."""
    text = json.dumps([[call.id, call.prompt] for call in calls], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _value(value: object) -> str:
    # JSON's true is Python's True; people write it either way.
    return str(value).strip().lower() if isinstance(value, (str, bool)) else ""


def _json_objects(text: str) -> Iterator[dict[str, object]]:
    """The outermost JSON objects of a text, in order."""
    decoder, place = json.JSONDecoder(strict=False), text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            if isinstance(value, dict):
                yield value
        place = text.find("{", end)
