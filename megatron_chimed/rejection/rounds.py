"""Rejection sampling: draw, score, select, train, report, and again with the new policy.

This file is the algorithm. Every rank runs it. Each step is a distributed job of its own, with its
own parallel layout and only the weights that it needs in memory; a step is finished when its output
file exists, and a step that was killed resumes from the work kept beside that file.
"""

from megatron_chimed.generation.workers import Workers
from megatron_chimed.rejection.candidate_sampling import draw_candidates
from megatron_chimed.rejection.candidate_scoring import score_candidates
from megatron_chimed.rejection.candidate_selection import reselect_candidates, select_candidates
from megatron_chimed.rejection.config import RejectionConfig
from megatron_chimed.rejection.inputs import RejectionInputs
from megatron_chimed.rejection.job import RejectionJob
from megatron_chimed.rejection.policy_evaluation import evaluate_policy
from megatron_chimed.rejection.report.report_files import (
    print_round_report,
    read_round_report,
    write_overview,
    write_round_report,
)
from megatron_chimed.rejection.report.round_report import measure_round
from megatron_chimed.rejection.round_training import train_policy


def run_rounds(config: RejectionConfig, inputs: RejectionInputs, workers: Workers) -> int:
    """Runs every round that has no report yet.

    Returns:
        Exit code 0; every failure raises.
    """
    with RejectionJob(config, inputs, workers) as job:
        for number in range(1, config.rounds + 1):
            if not job.has_report(number):
                run_round(job, number)
            workers.print(f"round {number} is done: {job.report_path(number)}")
        workers.on_rank_0(lambda: publish_policy(job, config.rounds))
        workers.print(f"done: the report of all rounds is {job.report_path()}")
    return 0


def run_round(job: RejectionJob, number: int) -> None:
    """Trains the policy of round `number` on the best candidates of the policy before it."""
    evaluate_policy(job, number - 1)
    if job.has_candidates(number):
        reselect_candidates(job, number)
    else:
        candidates = draw_candidates(job, number)
        candidates = score_candidates(job, number, candidates)
        select_candidates(job, number, candidates)
    train_policy(job, number)
    evaluate_policy(job, number)
    job.workers.on_rank_0(lambda: report_round(job, number))
    job.workers.on_rank_0(lambda: publish_policy(job, number))


def report_round(job: RejectionJob, number: int) -> None:
    """Compares the fresh answers before and after a round, and prints and writes the result."""
    candidates = job.read_candidates(number)
    before, after = job.read_fresh_answers(number - 1), job.read_fresh_answers(number)
    report = measure_round(
        number,
        candidates=candidates,
        before=before,
        after=after,
        skipped=job.inputs.skipped(),
        held_out=job.inputs.is_held_out,
    )
    folder = job.folder.of_round(number)
    write_round_report(folder, report, candidates=candidates, before=before, after=after)
    print_round_report(report)


def publish_policy(job: RejectionJob, number: int) -> None:
    """Makes the output folder a run folder of the policy after a round, with all reports so far."""
    job.require_fresh_answers_of_policy(number)
    job.folder.link_checkpoints(number)
    rounds = range(1, number + 1)
    reports = [read_round_report(job.folder.of_round(earlier)) for earlier in rounds]
    write_overview(job.folder.path, reports)
