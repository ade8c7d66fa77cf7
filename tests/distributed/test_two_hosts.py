"""A job on two hosts goes on by itself when a worker dies and when the network between them fails.

Whatever happened to it, it ends with the losses of an undisturbed run, bit for bit.
"""

import os
import signal

import pytest

from tests.distributed.hosts import Launchers, loopback, namespaces
from tests.integration import commands

pytestmark = pytest.mark.timing

SECONDS = 100  # for each thing to happen, on a busy machine
FLAGS = ("--drain-seconds", "3", "--join-seconds", "60", "--max-restarts", "3")
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
    """Until so many training steps are in the trace."""
    metrics = run / "metrics.jsonl"
    job.until(
        lambda: metrics.exists() and metrics.read_text().count('"kind": "train"') >= number, SECONDS
    )


def restarts_of(job):
    return [job.log(node).count("trying again") for node in (0, 1)]


@pytest.mark.slow
@pytest.mark.timeout(5 * SECONDS)
def test_a_job_outlives_a_killed_worker_and_a_parted_network(hosts, project, losses, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    words = ["--run-folder", run, "tools/train.py", "--config", project, *JOB, "--output-dir", run]
    with Launchers(hosts, words, flags=FLAGS, folder=run) as job:
        wait_for_steps(job, run, 65)
        os.kill(job.worker(1), signal.SIGKILL)
        job.until(lambda: min(restarts_of(job)) == 1, SECONDS)
        if hosts.pair[1].prefix:  # only a real link can be cut
            wait_for_steps(job, run, 125)
            hosts.set_link("down")
            job.until(lambda: min(restarts_of(job)) == 2, SECONDS)
            hosts.set_link("up")
        assert job.codes(SECONDS) == [0, 0], str(job)
        assert "a rank ended by signal 9" in job.log(1)
        # torchrun need not give rank 1, which reports, to the second node.
        assert "iter_0000060 at step 60" in job.log(0) + job.log(1), "resumed, not begun anew"
    assert commands.train_steps(run) == list(range(1, 241))
    assert commands.train_losses(run) == losses
