"""Keys that any row may have beside its texts: judgements, masks, reasoning, and tools.

They are applied to what the row's format read, so that every format of conversations has them.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from megatron_chimed.data.formats.example import Conversation, Example, Ranking, UnpairedAnswer
from megatron_chimed.data.formats.keys import LABEL, LOSS_REASON, MASK, REASON
from megatron_chimed.data.formats.row import COMPARED, NOTHING, RowError

JUDGEMENTS = {"true": True, "1": True, "1.0": True, "good": True, "desirable": True}
JUDGEMENTS |= {"false": False, "0": False, "0.0": False, "bad": False, "undesirable": False}
# Beside these keys a label of 0 or 1 is a judgement; elsewhere it may be a category.
JUDGED_KEYS = ("messages", "conversations", "conversation", "completion")
ASKERS = ("user", "human")  # NeMo writes whose words are masked


def annotated(
    row: dict[str, Any], examples: Sequence[Example], annotations: Sequence[tuple[str, str]]
) -> Sequence[Example]:
    """The examples of a row with what its annotations say.

    Args:
        row: The row.
        examples: What its format read.
        annotations: Keys of the row, each with its kind, from `keys.key_table`.

    Raises:
        RowError: An annotation cannot be used, or nothing is left to learn.
    """
    # Judgements come last: they wrap the conversation that the others change.
    for name, kind in sorted(annotations, key=lambda entry: entry[1] == LABEL):
        value = row[name]
        if value in NOTHING:
            continue
        if kind == LABEL:
            _refuse_number(row, name, value)
            examples = [_judged(example, name, value) for example in examples]
        elif kind == MASK:
            examples = [_masked(example, name, value) for example in examples]
        elif kind == REASON:
            examples = [_reasoned(example, name, value, len(examples)) for example in examples]
        else:
            examples = [_with_tools(example, name, value) for example in examples]
    return examples


def _refuse_number(row: dict[str, Any], name: str, value: Any) -> None:
    """Refuses a `label` that may be a judgement or the number of a category."""
    is_number = not isinstance(value, bool) and str(value).strip() in ("0", "1", "0.0", "1.0")
    if is_number and name.lower() == LABEL and not any(key in row for key in JUDGED_KEYS):
        raise RowError(
            f"{name!r} is {value!r}, which may judge the answer or be a category: write true or "
            "false if it judges, else pass --ignore-keys " + name
        )


def _judged(example: Example, name: str, value: Any) -> Example:
    is_good = JUDGEMENTS.get(str(value).strip().lower())
    if is_good is None:
        if name.lower() == "label":  # the name of a category
            return example
        raise RowError(f"{name!r} is {value!r}, neither true nor false")
    if not isinstance(example, Conversation):
        raise RowError(f"{name!r} judges one answer, but the row compares several")
    return UnpairedAnswer(example, is_good)


def _masked(example: Example, name: str, value: Any) -> Example:
    if name.lower() == "mask":  # some mean what is learned by it, some what is not
        if isinstance(value, str) and value.lower() in ASKERS:
            return example
        raise RowError(f"{name!r} {LOSS_REASON}")
    if value in (True, "1", "true", "True"):
        return example
    if value in (False, "0", "false", "False"):
        raise RowError(f"no answer is learned: {name!r} is {value!r}")
    if isinstance(example, Ranking):
        raise RowError(f"{name!r} masks an answer, but {COMPARED}")
    flags = _flags(value)
    if flags is None or not isinstance(example, Conversation):
        raise RowError(f"{name!r} {LOSS_REASON}")
    turns = example.turns
    system = int(bool(example.system))
    if len(flags) in (2 * len(turns), 2 * len(turns) + system):
        skipped = len(flags) - 2 * len(turns)
        if any(flags[:skipped]) or any(flags[skipped::2]):
            raise RowError(f"{name!r} says that a question is learned; --targets all learns all")
        flags = flags[skipped + 1 :: 2]
    if len(flags) != len(turns):
        raise RowError(f"{name!r} has {len(flags)} entries for {len(turns)} answers")
    turns = tuple(
        replace(turn, is_learned=turn.is_learned and flag)
        for turn, flag in zip(turns, flags, strict=True)
    )
    if not any(turn.is_learned for turn in turns):
        raise RowError(f"no answer is learned: {name!r} masks all")
    return replace(example, turns=turns)


def _flags(value: Any) -> list[bool] | None:
    if not isinstance(value, list) or not all(flag in (0, 1) for flag in value):
        return None
    return [bool(flag) for flag in value]


def _reasoned(example: Example, name: str, value: Any, count: int) -> Example:
    if not isinstance(value, str):
        raise RowError(f"{name!r} is of type {type(value).__name__}, not a text")
    if not isinstance(example, Conversation) or count > 1:
        raise RowError(
            f"{name!r} is reasoning, but the row has several answers; --drop-reasoning leaves it "
            "out"
        )
    *earlier, last = example.turns
    if last.reasoning not in ("", value):
        raise RowError(f"{name!r} is reasoning, and the last answer has other reasoning")
    return replace(example, turns=(*earlier, replace(last, reasoning=value)))


def _with_tools(example: Example, name: str, value: Any) -> Example:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(example, Ranking):
        return replace(example, prompt=_with_tools(example.prompt, name, value))
    if not isinstance(example, Conversation):
        raise RowError(f"{name!r} offers tools, which a text cannot call")
    if example.tools not in ("", text):
        raise RowError(f"{name!r} and another key offer different tools")
    return replace(example, tools=text)


def without_reasoning(example: Example) -> Example:
    """The example without the reasoning before its answers."""
    if isinstance(example, UnpairedAnswer):
        return replace(example, conversation=_unreasoned(example.conversation))
    if isinstance(example, Ranking):
        return replace(example, prompt=_unreasoned(example.prompt), reasonings=())
    return _unreasoned(example) if isinstance(example, Conversation) else example


def _unreasoned(conversation: Conversation) -> Conversation:
    turns = tuple(
        replace(turn, reasoning="", steps=tuple(replace(s, reasoning="") for s in turn.steps))
        for turn in conversation.turns
    )
    return replace(conversation, turns=turns)
