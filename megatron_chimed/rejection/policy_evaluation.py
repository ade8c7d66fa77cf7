"""Fresh answers of a policy to the evaluation prompts, for the report."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from megatron_chimed.generation import Session
from megatron_chimed.rejection.candidate import Candidate
from megatron_chimed.rejection.candidate_sampling import answer_log_probs_of, draw_answers
from megatron_chimed.rejection.candidate_scoring import score_with_reward_model
from megatron_chimed.rejection.inputs import weights_identity
from megatron_chimed.rejection.job import RejectionJob
from megatron_chimed.rejection.job_folder import POLICY_KEY, finish_candidates


def evaluate_policy(job: RejectionJob, number: int) -> None:
    """Writes fresh answers of the policy after a round, with scores and log-probabilities.

    Round 0 evaluates the policy that the job started from. Every rank calls it.

    Raises:
        ConfigError: There are answers already, but of another policy.
    """
    if job.has_fresh_answers(number):
        job.workers.on_rank_0(lambda: job.require_fresh_answers_of_policy(number))
        return
    policy, path = job.policy(number), job.fresh_answers_path(number)
    answers = _draw_fresh_answers(job, number, policy)
    prompts = job.inputs.held_out.prompts
    scored = score_with_reward_model(job, prompts, answers, path)
    metadata = {POLICY_KEY: weights_identity(policy)}
    job.workers.on_rank_0(lambda: finish_candidates(path, scored, metadata))


def _draw_fresh_answers(job: RejectionJob, number: int, policy: Path) -> list[Candidate]:
    """Answers with their log-probabilities by the policy and by the first policy."""
    inputs = job.inputs
    kind = "held-out prompts" if inputs.is_held_out else "training prompts"
    count = len(inputs.held_out.prompts)
    job.workers.print(f"round {number}: fresh answers to {count} {kind} by {policy}")
    with job.workers.session(policy) as session:
        answers = draw_answers(
            session,
            policy=policy,
            prompts=inputs.held_out,
            per_prompt=job.config.evaluation.per_prompt,
            # The same seeds in every round, and none of them a candidate's.
            sampling=job.sampling(0),
            max_batch=job.config.inference.max_batch,
            output=job.fresh_answers_path(number),
        )
        own = _log_probs(job, session, answers)
    first = own
    if number:
        with job.workers.session(inputs.policy) as session:
            first = _log_probs(job, session, answers)
    return [
        dataclasses.replace(answer, log_prob=log_prob, first_log_prob=first_log_prob)
        for answer, log_prob, first_log_prob in zip(answers, own, first, strict=True)
    ]


def _log_probs(job: RejectionJob, session: Session, answers: Sequence[Candidate]) -> list[float]:
    batch_tokens = job.config.inference.batch_tokens
    return answer_log_probs_of(
        session,
        job.inputs.held_out,
        answers,
        batch_tokens=batch_tokens,
    )
