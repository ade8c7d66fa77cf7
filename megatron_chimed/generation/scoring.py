"""Scores of a reward model: rows of prompts and completions in, numbers out.

Rows are rendered with the template that the model was trained with, which its checkpoint holds: a
completion that is framed in another way is scored as noise.
"""

import json
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_chimed.data.formats.example import Conversation
from megatron_chimed.data.formats.prompt import asked_conversation
from megatron_chimed.data.formats.row import RowError, parse_json, text_at
from megatron_chimed.data.templates import (
    Dropped,
    Template,
    agreed_template,
    encode_conversations,
)
from megatron_chimed.errors import CheckpointError, DataError, NumericError
from megatron_chimed.files import atomic_file
from megatron_chimed.generation.packed import measure_packed
from megatron_chimed.generation.rows import json_lines
from megatron_chimed.generation.session import Session

SCORE = "score"
NAMED_ROWS = 5


def read_answers(
    path: str | os.PathLike,
) -> tuple[list[dict[str, Any]], list[Conversation | None]]:
    """Reads the rows that are to be scored; blank lines are none.

    Returns:
        The rows as they are, and the conversation that each stands for, its last answer being the
        completion; None where that is null, as tools/generate.py writes for a prompt it skipped.

    Raises:
        DataError: A malformed row, with file and line, or no row at all.
    """
    rows, conversations = [], []
    for number, line in json_lines(path):
        try:
            row = parse_json(line)
            conversations.append(_conversation_of(row))
        except RowError as error:
            raise DataError(
                f"{path}:{number}: {error}. Each line is an object with the question under "
                '"prompt" (and "history", "system"), or messages under "conversations", and '
                'the answer to be scored under "completion".'
            ) from None
        rows.append(row)
    if not rows:
        raise DataError(f"{path} holds no rows, so there is nothing to score.")
    return rows, conversations


def write_scores(
    path: str | os.PathLike, rows: Sequence[dict[str, Any]], scores: Sequence[float | None]
) -> None:
    """Writes the rows in their order, each with its `score`, all or nothing."""
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        for row, score in zip(rows, scores, strict=True):
            line = json.dumps({**row, SCORE: score}, ensure_ascii=False, allow_nan=False)
            stream.write(line + "\n")


def require_template(session: Session, given: Template | None = None) -> Template:
    """The template to score with: the checkpoint's own.

    Args:
        session: Of a reward model.
        given: As of `agreed_template`.

    Raises:
        ConfigError: It is another one, or nobody knows.
    """
    return agreed_template(session.template, given, "the reward model")


def score_conversations(
    session: Session,
    conversations: Sequence[Conversation | None],
    template: Template,
    *,
    batch_tokens: int = 8192,
) -> list[float | None]:
    """Scores the last answer of each conversation; every rank calls it with the same arguments.

    Args:
        session: From `open_session(..., head="score")`, with a tokenizer.
        conversations: Their last answers are what is scored; None has no score.
        template: From `require_template`.
        batch_tokens: As in `score_sequences`.

    Returns:
        The scores in order, on every rank, None for None.

    Raises:
        CheckpointError: The checkpoint has no tokenizer.
        DataError: Conversations that are longer than the model's positions, or have no answer left.
        NumericError: A score is not finite.
    """
    answered = [(row, item) for row, item in enumerate(conversations, start=1) if item is not None]
    if conversations and not answered:
        raise DataError("no row has a completion, so there is nothing to score.")
    encoded = encode_answers(session, [item for _, item in answered], template)
    unfit = [row for (row, _), ids in zip(answered, encoded, strict=True) if ids is None]
    if unfit:
        named = ", ".join(map(str, unfit[:NAMED_ROWS]))
        more = ", ..." if len(unfit) > NAMED_ROWS else ""
        raise DataError(
            f"{len(unfit)} of {len(encoded)} rows cannot be scored: row {named}{more}. They are "
            f"longer than the model's {session.config.max_position_embeddings} positions, or their "
            "answer has no token. Take them out or shorten them."
        )
    found = iter(score_sequences(session, encoded, batch_tokens=batch_tokens))
    return [None if item is None else next(found) for item in conversations]


def encode_answers(
    session: Session, conversations: Sequence[Conversation], template: Template
) -> list[np.ndarray | None]:
    """What a reward model reads of each conversation.

    Args:
        session: As in `score_conversations`.
        conversations: As in `score_conversations`.
        template: From `require_template`.

    Returns:
        Ids `[n]`; None for a conversation that is longer than the model's positions, or whose last
        answer has no token.

    Raises:
        CheckpointError: The checkpoint has no tokenizer.
    """
    if session.tokenizer is None:
        raise CheckpointError(
            "the reward model was saved without its tokenizer, so no text can be scored with it. "
            "Convert or save it again with its tokenizer."
        )
    limit = session.config.max_position_embeddings
    encoded = encode_conversations(
        session.tokenizer, template, conversations, targets="last", seq_length=limit
    )
    # A conversation of which turns were left out would be scored for another answer.
    return [
        None if isinstance(item, Dropped) or item.dropped_turns > 0 else item.ids
        for item in encoded
    ]


def score_sequences(
    session: Session, sequences: Sequence[np.ndarray], *, batch_tokens: int = 8192
) -> list[float]:
    """Scores of token sequences at their last tokens; every rank calls it with the same arguments.

    Args:
        session: From `open_session(..., head="score")`.
        sequences: Ids `[n]` each, prompt and answer with its end, as in training.
        batch_tokens: Tokens of a forward pass, if no sequence is longer; changes speed and memory
            only.

    Returns:
        The scores in order, on every rank; each the fp32 value, exactly.

    Raises:
        NumericError: A score is not finite.
    """
    scores = measure_packed(
        session,
        sequences,
        lambda scores, pack: scores[pack.ends, 0],  # of [s, 1]
        batch_tokens=batch_tokens,
    )
    if not all(map(math.isfinite, scores)):
        raise NumericError(
            "a score is not finite: the weights are broken or overflow in this precision. Try "
            "--training.precision fp32, or an older checkpoint."
        )
    return scores


def _conversation_of(row: Any) -> Conversation | None:
    """The conversation of a row, its completion as the last answer; None where there is no score.

    That is: a null completion, and one to a prompt that was cut, of which the row holds all.

    Raises:
        RowError: It has no question, no answer to it, or what the output would replace.
    """
    if not isinstance(row, dict):
        raise RowError(f"a {type(row).__name__} instead of a JSON object")
    if SCORE in row:
        raise RowError(f'there is a key "{SCORE}" already, which the output would replace')
    if row.get("prompt_cut") or ("completion" in row and row["completion"] is None):
        return None
    return asked_conversation(row, text_at(row, "completion"))
