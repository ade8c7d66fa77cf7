"""Scores of candidates by the reward model."""

import contextlib
import dataclasses
import functools
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
from megatron_chimed.generation.prompts import Prompt
from megatron_chimed.rejection.candidate import Candidate
from megatron_chimed.rejection.job import RejectionJob
from megatron_chimed.rejection.score_journal import ScoreJournal

SLICE = 8192
"""Candidates that are scored between two writes to the journal."""


def score_candidates(
    job: RejectionJob, number: int, candidates: Sequence[Candidate]
) -> list[Candidate]:
    """Scores the candidates of a round; every rank calls it and gets all scores."""
    prompts = job.inputs.prompts.prompts
    return score_with_reward_model(job, prompts, candidates, job.candidates_path(number))


def score_with_reward_model(
    job: RejectionJob, prompts: Sequence[Prompt], answers: Sequence[Candidate], output: Path
) -> list[Candidate]:
    """Loads the reward model and scores answers to `prompts`, whose final file is `output`."""
    checkpoint = job.inputs.reward_model
    job.workers.print(f"scoring {len(answers):,} answers with {checkpoint}")
    with job.workers.session(checkpoint, "score") as session:
        return score_answers(
            session,
            prompts,
            answers,
            output=output,
            template=job.inputs.template,
            batch_tokens=job.config.inference.batch_tokens,
        )


def score_answers(
    session: Session,
    prompts: Sequence[Prompt],
    answers: Sequence[Candidate],
    *,
    output: Path,
    template: Template,
    batch_tokens: int,
) -> list[Candidate]:
    """Returns the answers with their scores; every rank calls it with the same arguments.

    Args:
        session: Of the reward model.
        prompts: `Candidate.prompt` is an index into them.
        answers: An answer without tokens, or too long for the reward model with its prompt, gets no
            score.
        output: The file that will hold them; scores are kept in a journal beside it.
        template: The policy's, for a reward model whose checkpoint names none.
        batch_tokens: As in `score_sequences`.

    Raises:
        DataError: None of the answers can be scored.
        NumericError: A score is not finite.
        OutputError: The journal is damaged.
    """
    template = require_template(session, None if session.template else template)
    agreement = session.ranks.agreement
    with contextlib.closing(ScoreJournal(output, answers)) as journal:
        scores: list[float | None] = agreement.on_rank_0(journal.open)
        while len(scores) < len(answers):
            batch = answers[len(scores) : len(scores) + SLICE]
            encoded = encode_answers(
                session, [conversation_with(prompts[c.prompt], c.text) for c in batch], template
            )
            scorable = [ids for ids in encoded if ids is not None]
            found = iter(score_sequences(session, scorable, batch_tokens=batch_tokens))
            new = [None if ids is None else next(found) for ids in encoded]
            agreement.on_rank_0(functools.partial(journal.add, new))
            scores += new
    if all(score is None for score in scores):
        raise DataError(
            f"none of {len(answers)} answers can be scored: each is empty, or longer with its "
            f"prompt than the reward model's {session.config.max_position_embeddings} positions. "
            "Lower candidates.max_new_tokens, or check the policy with tools/generate.py."
        )
    return [
        dataclasses.replace(answer, score=score)
        for answer, score in zip(answers, scores, strict=True)
    ]


def conversation_with(prompt: Prompt, answer: str) -> Conversation:
    """The conversation of a prompt, with an answer to its last question."""
    *earlier, last = prompt.conversation.turns
    return dataclasses.replace(prompt.conversation, turns=(*earlier, Turn(last.question, answer)))
