"""Prompts that are empty or leave no room for a completion are skipped, cut or refused."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.generation.prompt_encoder import PromptEncoder
from megatron_chimed.generation.prompt_rows import PromptRow
from megatron_chimed.generation.requests import Completion, FinishReason, Request

TooLong: TypeAlias = Literal["skip", "cut", "error"]
TOO_LONG: tuple[TooLong, ...] = ("skip", "cut", "error")
NAMED_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class FittedPrompt:
    """A prompt, encoded for the model."""

    ids: tuple[int, ...]
    """Token ids; empty if it is skipped."""

    skipped: FinishReason | None = None
    """Why nothing is drawn for it; None if something is."""

    is_cut: bool = False
    """Whether tokens were removed from its start."""


def fit_prompts(
    encoder: PromptEncoder, rows: Sequence[PromptRow], room: int, too_long: TooLong
) -> list[FittedPrompt]:
    """Encodes rows, and skips, cuts or refuses those that do not fit.

    A conversation that is cut loses its earliest turns first, then the start of the question; a
    text loses its start.

    Args:
        encoder: Encodes for the model.
        rows: From `read_rows`.
        room: Largest number of tokens in a prompt (`longest_prompt`).
        too_long: What to do with longer prompts; empty ones are skipped unless it is `error`.

    Raises:
        ConfigError: There is no room for any prompt.
        DataError: A prompt does not fit and `too_long` is `error`; or no prompt is left.
    """
    if room < 1:
        raise ConfigError(
            f"--max-new-tokens leaves {room} of the model's positions for a prompt. Lower it."
        )
    asks = [row.asked != "" or encoder.add_bos for row in rows]
    asking = [row.asked for row, asked in zip(rows, asks, strict=True) if asked]
    encoded = iter(encoder.encode(asking))
    fitted = []
    for row, asked in zip(rows, asks, strict=True):
        ids = next(encoded) if asked else []
        fitted.append(_fit(encoder, row, ids, room, too_long))
    unfit = [(row, fit) for row, fit in zip(rows, fitted, strict=True) if fit.skipped]
    if unfit and (too_long == "error" or len(unfit) == len(rows)):
        raise DataError(
            f"{len(unfit)} of {len(rows)} prompts cannot be completed: "
            f"{'; '.join(f'{row.location}: {_reason(fit)}' for row, fit in unfit[:NAMED_ROWS])}"
            f"{'; ...' if len(unfit) > NAMED_ROWS else ''}. At most {room} tokens fit: shorten "
            "them, lower --max-new-tokens, or let --too-long skip or cut them."
        )
    return fitted


def make_requests_of(
    fitted: Sequence[FittedPrompt], num_candidates: int, *, starts_text: bool
) -> tuple[list[Request], list[Completion]]:
    """Requests for the prompts that fit, and empty completions for those that are skipped.

    The `prompt_id` of both is the index in `fitted`.
    """
    if num_candidates < 1:
        raise ConfigError(
            f"--num-candidates is {num_candidates}: it counts completions of each prompt. Set 1 or "
            "more."
        )
    requests: list[Request] = []
    skipped: list[Completion] = []
    for index, prompt in enumerate(fitted):
        for candidate in range(num_candidates):
            if prompt.skipped:
                skipped.append(
                    Completion(
                        prompt_id=index,
                        candidate=candidate,
                        token_ids=(),
                        text=None,
                        finish_reason=prompt.skipped,
                    )
                )
            else:
                requests.append(
                    Request(
                        prompt=prompt.ids,
                        prompt_id=index,
                        candidate=candidate,
                        starts_text=starts_text,
                    )
                )
    return requests, skipped


def describe_unfit(rows: Sequence[PromptRow], fitted: Sequence[FittedPrompt]) -> list[str]:
    """A line for each row that was skipped or cut, at most `NAMED_ROWS`."""
    lines = [
        f"{row.location}: "
        + ("the prompt was cut" if prompt.is_cut else f"skipped, {_reason(prompt)}")
        for row, prompt in zip(rows, fitted, strict=True)
        if prompt.skipped or prompt.is_cut
    ]
    more = len(lines) - NAMED_ROWS
    tail = [f"... and {more} more; finish_reason and prompt_cut of the output list all"]
    return lines[:NAMED_ROWS] + (tail if more > 0 else [])


def _reason(prompt: FittedPrompt) -> str:
    return "the prompt is empty" if prompt.skipped == "prompt_empty" else "the prompt is too long"


def _fit(
    encoder: PromptEncoder, row: PromptRow, ids: Sequence[int], room: int, too_long: TooLong
) -> FittedPrompt:
    if not ids:
        return FittedPrompt(ids=(), skipped="prompt_empty")
    if len(ids) <= room:
        return FittedPrompt(ids=tuple(ids))
    cut = _cut(encoder, row.asked, ids, room) if too_long == "cut" else None
    if cut is None:
        return FittedPrompt(ids=(), skipped="prompt_too_long")
    return FittedPrompt(ids=tuple(cut), is_cut=True)


def _cut(
    encoder: PromptEncoder, asked: Conversation | str, ids: Sequence[int], room: int
) -> list[int] | None:
    """The end of a prompt, or None if even the shortest remainder does not fit."""
    if isinstance(asked, str):
        first = ids[:1] if encoder.add_bos else []
        kept = room - len(first)
        return [*first, *ids[-kept:]] if kept > 0 else None
    for start in range(1, len(asked.turns)):
        [ids] = encoder.encode([replace(asked, turns=asked.turns[start:])])
        if len(ids) <= room:
            return ids
    question = asked.turns[-1].question
    low, high = 0, len(question) - 1  # characters to keep: `low` fits, if any number does
    best = None
    while low < high:
        middle = (low + high + 1) // 2
        shorter = question[len(question) - middle :]
        [ids] = encoder.encode([replace(asked, turns=(Turn(shorter, ""),))])
        if len(ids) <= room:
            low, best = middle, ids if shorter.strip() else best
        else:
            high = middle - 1
    return best
