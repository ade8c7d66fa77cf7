"""Nobody gets in: one node opens no port to others, two nodes run nothing that is sent to them.

Each host is a network namespace with an address and a name of its own; the name means the address.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed import ports
from tests.distributed.hosts import Launchers, namespaces
from tests.integration import commands

pytestmark = pytest.mark.timing

SECONDS = 100
LONG = ("--training.train_steps", 100000, "--checkpoint.save_interval", 100000)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return commands.make_project(tmp_path_factory.mktemp("ports") / "project")


@pytest.fixture(scope="module")
def hosts():
    with namespaces() as made:
        if made is None:
            pytest.skip("network namespaces need root and iproute2")
        for host in made.pair:
            folder = Path("/etc/netns", host.name)
            folder.mkdir(parents=True)
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{host.address} {host.name}\n")
        yield made
        for host in made.pair:
            (Path("/etc/netns", host.name) / "hosts").unlink()
            Path("/etc/netns", host.name).rmdir()


def start(host, *words):
    """A command on a host that knows its own name."""
    named = ("unshare", "--uts", "sh", "-c", f'hostname {host.name} && exec "$@"', "sh")
    return subprocess.Popen(
        [*host.prefix, *named, sys.executable, *map(str, words)],
        cwd=commands.ROOT,
        env={name: value for name, value in os.environ.items() if "SOCKET_IFNAME" not in name}
        | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.timeout(3 * SECONDS)
@pytest.mark.parametrize("launcher", [("tools/launch.py", "--nproc-per-node", 2), ()])
def test_one_node_opens_nothing_to_others(hosts, project, tmp_path, launcher):
    host, other = hosts.pair
    run = tmp_path / "run"
    if launcher:
        launcher = (*launcher, "--run-folder", run)
    words = ("tools/train.py", "--config", project, *LONG, "--output-dir", run)
    job = start(host, *launcher, *words)
    try:
        commands.read_until(job, "step")
        found = ports.listeners(job.pid)
        assert found, "gloo listens somewhere: nothing was seen of it"
        assert [entry for entry in found if not entry.is_loopback] == []
        assert ports.reachable(other.prefix, host.address, {entry.port for entry in found}) == []
    finally:
        commands.kill_tree(job.pid)
        subprocess.run(["pkill", "-9", "-f", str(run)], timeout=10)
        job.communicate(timeout=SECONDS)


@pytest.mark.slow
@pytest.mark.timeout(5 * SECONDS)
def test_two_nodes_listen_on_one_address_and_run_nothing_that_is_sent(hosts, project, tmp_path):
    host, other = hosts.pair
    run, marker = tmp_path / "run", tmp_path / "executed"
    run.mkdir()
    words = ["--run-folder", run, "tools/train.py", "--config", project, *LONG, "--output-dir", run]
    with Launchers(hosts, words, flags=("--max-restarts", "1"), folder=run) as job:
        metrics = run / "metrics.jsonl"
        job.until(lambda: metrics.exists() and "train" in metrics.read_text(), SECONDS)
        for node, place in enumerate(hosts.pair):
            open_to = {entry.address for entry in ports.listeners(job.pid(node))}
            assert open_to <= {place.address, "127.0.0.1"}, str(job)
        found = {entry.port for entry in ports.listeners(job.pid(0)) if not entry.is_loopback}
        assert 29500 in found
        job_id = json.loads((run / "launch/job.json").read_text())["job_id"]
        assert len(job_id) == 32
        job_ids = json.dumps(["chimed", "none", job_id])
        attack = [sys.executable, "-c", ports.ATTACK, host.address]
        words = [*other.prefix, *attack, json.dumps([29500, *found]), job_ids, str(marker)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
        assert "wrote" in done.stdout, done.stdout + done.stderr
        time.sleep(8)  # agents of c10d read their state every 5 s
        assert not marker.exists(), str(job)
