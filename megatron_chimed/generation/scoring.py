"""Scores of a reward model: rows of prompts and completions in, numbers out.

Rows are rendered with the template that the model was trained with, which its checkpoint stores: in
any other template the scores would be noise.
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
from megatron_chimed.generation.prompt_rows import json_lines
from megatron_chimed.generation.session import Session

SCORE = "score"
NAMED_ROWS = 5


def read_answers(
    path: str | os.PathLike,
) -> tuple[list[dict[str, Any]], list[Conversation | None]]:
    """Reads the rows to be scored, skipping blank lines.

    Returns:
        The rows unchanged, and the conversation of each with the completion as its last answer;
        None for a null completion, as tools/generate.py writes for a prompt it skipped.

    Raises:
        DataError: A malformed row, with file and line, or no row at all.
    """
    rows: list[dict[str, Any]] = []
    conversations: list[Conversation | None] = []
    for number, line in json_lines(path):
        try:
            row = parse_json(line)
            conversations.append(_conversation_of(row))
        except RowError as error:
            raise DataError(
                f"{path}:{number}: {error}. Each line is an object with the question under "
                '"prompt" (and "history", "system"), or messages under "conversations", and '
                'the answer to score under "completion".'
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
    """The template to score with: that of the checkpoint.

    Args:
        session: Of a reward model.
        given: As of `agreed_template`.

    Raises:
        ConfigError: `given` is another one, or there is neither.
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
        conversations: Their last answers are scored; None gets no score.
        template: From `require_template`.
        batch_tokens: As in `score_sequences`.

    Returns:
        The scores in order, on every rank, None for None.

    Raises:
        CheckpointError: The checkpoint has no tokenizer.
        DataError: A conversation is longer than the model's positions, or has no answer tokens.
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
            "answer has no tokens. Remove or shorten them."
        )
    sequences = [ids for ids in encoded if ids is not None]
    found = iter(score_sequences(session, sequences, batch_tokens=batch_tokens))
    return [None if item is None else next(found) for item in conversations]


def encode_answers(
    session: Session, conversations: Sequence[Conversation], template: Template
) -> list[np.ndarray | None]:
    """Token ids of each conversation for the reward model.

    Args:
        session: As in `score_conversations`.
        conversations: As in `score_conversations`.
        template: From `require_template`.

    Returns:
        Ids `[n]`; None for a conversation that is longer than the model's positions, or whose last
        answer has no tokens.

    Raises:
        CheckpointError: The checkpoint has no tokenizer.
    """
    if session.tokenizer is None:
        raise CheckpointError(
            "the reward model was saved without its tokenizer, so it cannot read text. "
            "Convert or save it again with its tokenizer."
        )
    limit = session.config.max_position_embeddings
    encoded = encode_conversations(
        session.tokenizer, template, conversations, targets="last", seq_length=limit
    )
    # With dropped turns, the score would be that of another conversation.
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
        sequences: Ids `[n]` each: prompt, answer and its end token, as in training.
        batch_tokens: Tokens in a forward pass, unless a sequence is longer; changes speed and
            memory only.

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
            "a score is not finite: the weights are damaged or overflow in this precision. Try "
            "--training.precision fp32, or an older checkpoint."
        )
    return scores


def _conversation_of(row: Any) -> Conversation | None:
    """The conversation of a row with the completion as its last answer; None if it gets no score.

    No score: a null completion, or a prompt that was cut, of which the row holds the full text.

    Raises:
        RowError: It has no question, no answer, or a key that the output would replace.
    """
    if not isinstance(row, dict):
        raise RowError(f"a {type(row).__name__} instead of a JSON object")
    if SCORE in row:
        raise RowError(f'there is a key "{SCORE}" already, which the output would replace')
    if row.get("prompt_cut") or ("completion" in row and row["completion"] is None):
        return None
    return asked_conversation(row, text_at(row, "completion"))
