"""Answers of the policy, drawn on its shards; each is kept as soon as it has ended."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_chimed.generation import (
    Completion,
    Request,
    SamplingConfig,
    Session,
    answer_log_probs,
    complete_resumably,
    describe_job,
    prompt_seed,
    show_progress,
    summary,
)
from megatron_chimed.generation.prompts import Prompt
from megatron_chimed.rejection.candidate import POLICY, REFERENCE, Candidate
from megatron_chimed.rejection.external import External
from megatron_chimed.rejection.materials import PromptSet, weights_identity
from megatron_chimed.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """What is drawn, and where it is kept until the round's file is written."""

    policy: Path
    """The checkpoint that the session holds."""
    prompts: PromptSet
    per_prompt: int
    """Answers to each; none are drawn for 0."""
    sampling: SamplingConfig
    max_batch: int
    """As in `stream_completions`."""
    output: Path
    """The file that will hold them; finished answers are kept beside it."""


def draw_answers(session: Session, draw: Draw) -> list[Candidate]:
    """Draws, going on from where a killed start was; every rank calls it.

    Returns:
        The answers by prompt and number, on every rank.

    Raises:
        ChimedError: As of `complete_resumably`.
    """
    if not draw.per_prompt:
        return []
    requests = [
        Request(prompt=ids, prompt_id=place, candidate=number)
        for place, ids in enumerate(draw.prompts.ids)
        for number in range(draw.per_prompt)
    ]
    fingerprint = {
        "policy": weights_identity(draw.policy),
        "prompts": draw.prompts.identity,
        "sampling": dataclasses.asdict(draw.sampling),
        "precision": str(session.settings.params_dtype),
    }
    speaks = session.ranks.rank == 0
    if speaks:
        told = describe_job(session, requests, draw.sampling, draw.max_batch)
        print(told, file=sys.stderr, flush=True)
    started = time.monotonic()
    with show_progress(session, requests) if speaks else contextlib.nullcontext() as seen:
        completions = complete_resumably(
            session,
            requests,
            draw.sampling,
            output=draw.output,
            fingerprint=fingerprint,
            max_batch=draw.max_batch,
            seen=seen,
        )
    if speaks:
        print(summary(completions, time.monotonic() - started), file=sys.stderr, flush=True)
    return [
        _drawn(session.tokenizer, draw.prompts.prompts[drawn.prompt_id], drawn, draw.sampling.seed)
        for drawn in completions
    ]


def given_answers(
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    external: Sequence[External],
    *,
    references: bool,
) -> list[Candidate]:
    """Answers that need not be drawn: those by others and, if wanted, those of the prompts."""
    answers = list(external)
    if references:
        answers += [
            External(prompt=place, source=REFERENCE, text=prompt.reference)
            for place, prompt in enumerate(prompts)
            if prompt.reference is not None
        ]
    numbers: dict[tuple[int, str], int] = {}
    found = []
    for answer in sorted(answers, key=lambda answer: (answer.prompt, answer.source)):
        number = numbers.get((answer.prompt, answer.source), 0)
        numbers[answer.prompt, answer.source] = number + 1
        ids = tuple(tokenizer.encode(answer.text))
        prompt = prompts[answer.prompt]
        found.append(
            Candidate(
                prompt=answer.prompt,
                prompt_id=prompt.id,
                category=prompt.category,
                source=answer.source,
                number=number,
                seed=None,
                text=answer.text,
                token_ids=ids,
                num_tokens=len(ids),
                finish_reason=None,
                question=question_of(prompt),
            )
        )
    return found


def log_probs_of(
    session: Session,
    prompts: PromptSet,
    candidates: Sequence[Candidate],
    *,
    batch_tokens: int,
) -> list[float]:
    """Log-probabilities of drawn answers by the session's model, their ends included.

    Raises:
        ChimedError: As of `answer_log_probs`.
    """
    eos_id = session.tokenizer.eos_id
    return answer_log_probs(
        session,
        [prompts.ids[candidate.prompt] for candidate in candidates],
        [
            candidate.token_ids + ((eos_id,) if candidate.finish_reason == "stop" else ())
            for candidate in candidates
        ],
        batch_tokens=batch_tokens,
    )


def question_of(prompt: Prompt) -> str:
    """What the answer is to."""
    return prompt.conversation.turns[-1].question


def _drawn(tokenizer: Tokenizer, prompt: Prompt, completion: Completion, seed: int) -> Candidate:
    # Decoded alone: the completion's own text starts with the space that is between it and the
    # prompt, and encoding it as an answer would put one more there, every round.
    text = tokenizer.decode(completion.token_ids)
    return Candidate(
        prompt=completion.prompt_id,
        prompt_id=prompt.id,
        category=prompt.category,
        source=POLICY,
        number=completion.candidate,
        seed=prompt_seed(seed, completion.prompt_id, completion.candidate),
        text=text.replace("\0", ""),  # which no file of texts can hold
        token_ids=completion.token_ids,
        num_tokens=len(completion.token_ids),
        finish_reason=completion.finish_reason,
        question=question_of(prompt),
    )
