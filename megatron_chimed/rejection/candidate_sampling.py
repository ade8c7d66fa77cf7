"""Candidates of a round: answers drawn by the policy, and answers that exist already."""

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
    require_tokenizer,
    show_progress,
    summary,
)
from megatron_chimed.generation.prompts import Prompt
from megatron_chimed.rejection.candidate import POLICY, REFERENCE, Candidate
from megatron_chimed.rejection.external import ExternalAnswer
from megatron_chimed.rejection.inputs import PromptSet, weights_identity
from megatron_chimed.rejection.job import RejectionJob
from megatron_chimed.tokenizer import Tokenizer


def draw_candidates(job: RejectionJob, number: int) -> list[Candidate]:
    """All candidates of a round, unscored, by prompt, source and number; every rank calls it."""
    config, inputs, policy = job.config, job.inputs, job.policy(number - 1)
    per_prompt, prompts = config.candidates.per_prompt, inputs.prompts
    given = given_answers(
        inputs.tokenizer,
        prompts.prompts,
        inputs.external,
        references=config.candidates.references,
    )
    job.workers.print(
        f"round {number}: {per_prompt} answers to each of {len(prompts.prompts)} prompts by "
        f"{policy}" + (f", {len(given)} answers by others" if given else "")
    )
    drawn: list[Candidate] = []
    if per_prompt:
        with job.workers.session(policy) as session:
            drawn = draw_answers(
                session,
                policy=policy,
                prompts=prompts,
                per_prompt=per_prompt,
                sampling=job.sampling(number),
                max_batch=config.inference.max_batch,
                output=job.candidates_path(number),
            )
    return sorted([*drawn, *given], key=lambda c: (c.prompt, c.source, c.number))


def draw_answers(
    session: Session,
    *,
    policy: Path,
    prompts: PromptSet,
    per_prompt: int,
    sampling: SamplingConfig,
    max_batch: int,
    output: Path,
) -> list[Candidate]:
    """Draws answers, resuming what an earlier start left unfinished; every rank calls it.

    Args:
        session: Holds the policy.
        policy: Its checkpoint.
        prompts: What is answered.
        per_prompt: Answers to each prompt.
        sampling: How to draw and where to end.
        max_batch: As in `stream_completions`.
        output: The file that will hold the answers; finished ones are kept beside it.

    Returns:
        The answers by prompt and number, on every rank.

    Raises:
        ChimedError: As of `complete_resumably`.
    """
    requests = [
        Request(prompt=ids, prompt_id=index, candidate=number)
        for index, ids in enumerate(prompts.ids)
        for number in range(per_prompt)
    ]
    fingerprint = {
        "policy": weights_identity(policy),
        "prompts": prompts.identity,
        "sampling": dataclasses.asdict(sampling),
        "precision": str(session.settings.params_dtype),
    }
    is_rank_0 = session.ranks.rank == 0
    if is_rank_0:
        print(describe_job(session, requests, sampling, max_batch), file=sys.stderr, flush=True)
    started = time.monotonic()
    with show_progress(session, requests) if is_rank_0 else contextlib.nullcontext() as progress:
        completions = complete_resumably(
            session,
            requests,
            sampling,
            output=output,
            fingerprint=fingerprint,
            max_batch=max_batch,
            on_completion=progress,
        )
    if is_rank_0:
        print(summary(completions, time.monotonic() - started), file=sys.stderr, flush=True)
    tokenizer = require_tokenizer(session)
    return [
        _drawn_candidate(tokenizer, prompts.prompts[item.prompt_id], item, sampling)
        for item in completions
    ]


def given_answers(
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    external: Sequence[ExternalAnswer],
    *,
    references: bool,
) -> list[Candidate]:
    """Candidates that need not be drawn: external answers and, if asked for, the references."""
    answers = list(external)
    if references:
        answers += [
            ExternalAnswer(prompt=index, source=REFERENCE, text=prompt.reference)
            for index, prompt in enumerate(prompts)
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
                question=_question_of(prompt),
            )
        )
    return found


def answer_log_probs_of(
    session: Session,
    prompts: PromptSet,
    answers: Sequence[Candidate],
    *,
    batch_tokens: int,
) -> list[float]:
    """Log-probabilities of drawn answers under the session's model, stop token included.

    Args:
        session: The model.
        prompts: The prompts that were answered.
        answers: Answers that were drawn for them.
        batch_tokens: As of `answer_log_probs`.

    Raises:
        ChimedError: As of `answer_log_probs`.
    """
    return answer_log_probs(
        session,
        [prompts.ids[answer.prompt] for answer in answers],
        [
            answer.token_ids + (() if answer.stop_id is None else (answer.stop_id,))
            for answer in answers
        ],
        batch_tokens=batch_tokens,
    )


def _question_of(prompt: Prompt) -> str:
    return prompt.conversation.turns[-1].question


def _drawn_candidate(
    tokenizer: Tokenizer, prompt: Prompt, completion: Completion, sampling: SamplingConfig
) -> Candidate:
    # Decoded alone: the completion's own text starts with the space that separates it from the
    # prompt, and encoding it as an answer would add one more space, every round.
    text = tokenizer.decode(completion.token_ids)
    stop_id = completion.stop_id
    if completion.finish_reason == "stop" and stop_id is None:
        stop_id = sampling.stop_token_ids[0]  # kept by an earlier version, which stored none
    return Candidate(
        prompt=completion.prompt_id,
        prompt_id=prompt.id,
        category=prompt.category,
        source=POLICY,
        number=completion.candidate,
        seed=prompt_seed(sampling.seed, completion.prompt_id, completion.candidate),
        text=text.replace("\0", ""),  # no text file format holds NUL
        token_ids=completion.token_ids,
        num_tokens=len(completion.token_ids),
        finish_reason=completion.finish_reason,
        stop_id=stop_id,
        question=_question_of(prompt),
    )
