"""Scores of candidates by the reward model, kept slice by slice until the round's file is there."""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.templates import Template
from megatron_chimed.errors import DataError
from megatron_chimed.generation import (
    Session,
    encode_answers,
    require_template,
    score_sequences,
)
from megatron_chimed.generation.lines import LineFile, read_lines
from megatron_chimed.generation.prompts import Prompt
from megatron_chimed.rejection.candidate import Candidate

SLICE = 8192
"""Candidates that are scored between two writes."""


def score_candidates(
    session: Session,
    prompts: Sequence[Prompt],
    candidates: Sequence[Candidate],
    *,
    output: Path,
    template: Template,
    batch_tokens: int,
) -> list[Candidate]:
    """The candidates with their scores; every rank calls it with the same arguments.

    Args:
        session: Of the reward model.
        prompts: What `Candidate.prompt` counts through.
        candidates: The answers; one without a token, or too long for the reward model with its
            prompt, has no score.
        output: The file that will hold them; scores are kept beside it.
        template: The policy's, for a reward model that does not say with which it was trained.
        batch_tokens: As in `score_sequences`.

    Raises:
        DataError: Not one can be scored.
        NumericError: A score is not finite.
        OutputError: The kept scores are damaged.
    """
    template = require_template(session, None if session.template else template)
    agreement = session.ranks.agreement
    with contextlib.closing(_KeptScores(output, candidates)) as kept:
        scores: list[float | None] = agreement.on_rank_0(kept.open)
        while len(scores) < len(candidates):
            part = candidates[len(scores) : len(scores) + SLICE]
            encoded = encode_answers(
                session, [conversation_of(prompts[c.prompt], c.text) for c in part], template
            )
            fit = [ids for ids in encoded if ids is not None]
            found = iter(score_sequences(session, fit, batch_tokens=batch_tokens))
            new = [None if ids is None else next(found) for ids in encoded]
            agreement.on_rank_0(functools.partial(kept.add, new))
            scores += new
    if all(score is None for score in scores):
        raise DataError(
            f"not one of {len(candidates)} answers can be scored: each is empty, or longer with "
            f"its prompt than the reward model's {session.config.max_position_embeddings} "
            "positions. Lower candidates.max_new_tokens, or look at the policy with "
            "tools/generate.py."
        )
    return [
        dataclasses.replace(candidate, score=score)
        for candidate, score in zip(candidates, scores, strict=True)
    ]


def conversation_of(prompt: Prompt, answer: str) -> Conversation:
    """The prompt with an answer."""
    *earlier, last = prompt.conversation.turns
    return dataclasses.replace(prompt.conversation, turns=(*earlier, Turn(last.question, answer)))


def remove_kept_scores(output: Path) -> None:
    """Removes what was kept, once `output` is written."""
    _kept_path(output).unlink(missing_ok=True)


class _KeptScores:
    """Scores of the first candidates of a file to be, in order, a line for each slice.

    They belong to exactly these candidates, of which the first line is a digest. One rank opens it.
    """

    def __init__(self, output: Path, candidates: Sequence[Candidate]) -> None:
        self._path = _kept_path(output)
        digest = hashlib.sha256()
        for candidate in candidates:
            digest.update(f"{candidate.prompt_id}\0{candidate.text}\0".encode())
        self._identity = {"candidates": digest.hexdigest()}
        self._file: LineFile | None = None

    def open(self) -> list[float | None]:
        """What was kept; other candidates' scores are thrown away."""
        lines = read_lines(self._path) if self._path.exists() else iter(())
        kept = []
        if next(lines, None) == self._identity:
            kept = [score for part in lines for score in part]
        else:
            self._path.unlink(missing_ok=True)
        self._file = LineFile(self._path, self._identity)
        return kept

    def add(self, scores: Sequence[float | None]) -> None:
        self._file.write(scores)

    def close(self) -> None:
        if self._file:
            self._file.close()


def _kept_path(output: Path) -> Path:
    return output.with_name(f".{output.name}.scores")
