"""Prompts that leave no room for an answer, or ask nothing: one of them does not stop a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.generation.framing import Framing
from megatron_chimed.generation.requests import Completion, FinishReason, Request
from megatron_chimed.generation.rows import PromptRow

TooLong: TypeAlias = Literal["skip", "cut", "error"]
TOO_LONG: tuple[TooLong, ...] = ("skip", "cut", "error")
NAMED_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class FittedPrompt:
    """A prompt as the model gets it."""

    ids: tuple[int, ...]
    """Token ids; none where it is skipped."""

    skipped: FinishReason | None = None
    """Why nothing is drawn for it."""

    is_cut: bool = False
    """Whether something of it was left out."""


def fit_prompts(
    framing: Framing, rows: Sequence[PromptRow], room: int, too_long: TooLong
) -> list[FittedPrompt]:
    """Encodes rows, and decides on those that do not fit.

    Of a conversation that is cut the earliest turns go first, then the beginning of the question;
    of a text its beginning goes.

    Args:
        framing: Encodes.
        rows: From `read_rows`.
        room: Tokens that a prompt may have (`longest_prompt`).
        too_long: What is done with longer ones; empty ones are skipped, or an error too.

    Raises:
        ConfigError: There is no room for any prompt.
        DataError: With `error`, some do not fit; or none is left.
    """
    if room < 1:
        raise ConfigError(
            f"--max-new-tokens leaves {room} of the model's positions for a prompt. Lower it."
        )
    asks = [row.asked != "" or framing.add_bos for row in rows]
    asking = [row.asked for row, asked in zip(rows, asks, strict=True) if asked]
    encoded = iter(framing.encode(asking))
    fitted = []
    for row, asked in zip(rows, asks, strict=True):
        ids = next(encoded) if asked else []
        fitted.append(_fit(framing, row, ids, room, too_long))
    unfit = [(row, fit) for row, fit in zip(rows, fitted, strict=True) if fit.skipped]
    if unfit and (too_long == "error" or len(unfit) == len(rows)):
        raise DataError(
            f"{len(unfit)} of {len(rows)} prompts cannot be completed: "
            f"{'; '.join(f'{row.place}: {_reason(fit)}' for row, fit in unfit[:NAMED_ROWS])}"
            f"{'; ...' if len(unfit) > NAMED_ROWS else ''}. At most {room} tokens fit: shorten "
            "them, lower --max-new-tokens, or let --too-long skip or cut them."
        )
    return fitted


def make_requests_of(
    fitted: Sequence[FittedPrompt], num_candidates: int, *, starts_text: bool
) -> tuple[list[Request], list[Completion]]:
    """What is to be drawn, and what is not: the place in `fitted` is the `prompt_id` of both."""
    if num_candidates < 1:
        raise ConfigError(
            f"--num-candidates is {num_candidates}: it counts completions of each prompt. Set 1 or "
            "more."
        )
    requests, skipped = [], []
    for place, prompt in enumerate(fitted):
        for candidate in range(num_candidates):
            numbers = {"prompt_id": place, "candidate": candidate}
            if prompt.skipped:
                nothing = Completion(
                    token_ids=(), text=None, finish_reason=prompt.skipped, **numbers
                )
                skipped.append(nothing)
            else:
                requests.append(Request(prompt=prompt.ids, starts_text=starts_text, **numbers))
    return requests, skipped


def describe_unfit(rows: Sequence[PromptRow], fitted: Sequence[FittedPrompt]) -> list[str]:
    """A line for each row that was skipped or cut, as many as a person reads."""
    told = [
        f"{row.place}: {'the prompt was cut' if prompt.is_cut else f'skipped, {_reason(prompt)}'}"
        for row, prompt in zip(rows, fitted, strict=True)
        if prompt.skipped or prompt.is_cut
    ]
    more = len(told) - NAMED_ROWS
    tail = [f"... and {more} more; finish_reason and prompt_cut of the output name all"]
    return told[:NAMED_ROWS] + (tail if more > 0 else [])


def _reason(prompt: FittedPrompt) -> str:
    return "the prompt is empty" if prompt.skipped == "prompt_empty" else "the prompt is too long"


def _fit(
    framing: Framing, row: PromptRow, ids: Sequence[int], room: int, too_long: TooLong
) -> FittedPrompt:
    if not ids:
        return FittedPrompt(ids=(), skipped="prompt_empty")
    if len(ids) <= room:
        return FittedPrompt(ids=tuple(ids))
    cut = _cut(framing, row.asked, ids, room) if too_long == "cut" else None
    if cut is None:
        return FittedPrompt(ids=(), skipped="prompt_too_long")
    return FittedPrompt(ids=tuple(cut), is_cut=True)


def _cut(
    framing: Framing, asked: Conversation | str, ids: Sequence[int], room: int
) -> list[int] | None:
    """The end of a prompt, or None where what must stay does not fit."""
    if isinstance(asked, str):
        first = ids[:1] if framing.add_bos else []
        kept = room - len(first)
        return [*first, *ids[-kept:]] if kept > 0 else None
    for start in range(1, len(asked.turns)):
        [ids] = framing.encode([replace(asked, turns=asked.turns[start:])])
        if len(ids) <= room:
            return ids
    question = asked.turns[-1].question
    low, high = 0, len(question) - 1  # characters that are kept: `low` fits, if any does
    best = None
    while low < high:
        middle = (low + high + 1) // 2
        shorter = question[len(question) - middle :]
        [ids] = framing.encode([replace(asked, turns=(Turn(shorter, ""),))])
        if len(ids) <= room:
            low, best = middle, ids if shorter.strip() else best
        else:
            high = middle - 1
    return best
