"""A job on two hosts resumes by itself after a killed worker and after a network partition.

Whatever happened to it, its losses are bit-identical to those of an undisturbed run.
"""

import operator
import os
import re
import signal

import pytest

from tests.distributed.hosts import Launchers, loopback, namespaces
from tests.integration import commands

pytestmark = pytest.mark.timing

SECONDS = 200  # upper limit of each wait, for a busy machine
# Restarts are allowed beyond the two below: a busy machine may miss a deadline of the job.
FLAGS = ("--drain-seconds", "3", "--join-seconds", "60", "--max-restarts", "20")
JOB = (
    *("--parallel.pipeline_parallel_size", 2, "--parallel.timeout_seconds", 4),
    *("--training.train_steps", 240, "--checkpoint.save_interval", 60),
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return commands.make_project(tmp_path_factory.mktemp("two_hosts") / "project")


@pytest.fixture(scope="module")
def losses(project, gloo_pool):
    run = project.parent / "undisturbed"
    words = ["--config", project, *JOB, "--output-dir", run]
    gloo_pool.run(commands.train_in_pool, 2, init=False, words=words)
    return commands.train_losses(run)


@pytest.fixture
def hosts():
    with namespaces() as made:
        yield made or loopback()


def wait_for_steps(job, run, number):
    """Waits until `number` training steps are in the trace."""
    metrics = run / "metrics.jsonl"
    job.until(
        lambda: metrics.exists() and metrics.read_text().count('"kind": "train"') >= number, SECONDS
    )


def restarts_of(job):
    return [job.log(node).count("restarting in") for node in (0, 1)]


@pytest.mark.slow
@pytest.mark.timeout(5 * SECONDS)
def test_a_job_outlives_a_killed_worker_and_a_network_partition(hosts, project, losses, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    words = ["--run-folder", run, "tools/train.py", "--config", project, *JOB, "--output-dir", run]
    with Launchers(hosts, words, flags=FLAGS, folder=run) as job:
        wait_for_steps(job, run, 65)
        os.kill(job.worker(1), signal.SIGKILL)
        job.until(lambda: min(restarts_of(job)) >= 1, SECONDS)
        if hosts.pair[1].prefix:  # only a real link can be cut
            wait_for_steps(job, run, 125)
            before = restarts_of(job)
            hosts.set_link("down")
            job.until(lambda: all(map(operator.gt, restarts_of(job), before)), SECONDS)
            hosts.set_link("up")
        assert job.codes(SECONDS) == [0, 0], str(job)
        assert "a rank ended by signal 9" in job.log(1)
        # torchrun need not give rank 1, which reports, to the second node.
        assert re.search(r"resumed from .*/iter_\d+ at step \d+0\b", job.log(0) + job.log(1))
    assert commands.train_steps(run) == list(range(1, 241))
    assert commands.train_losses(run) == losses
