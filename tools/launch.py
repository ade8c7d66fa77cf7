r"""Starts one node's ranks with torchrun and restarts them until the run is complete.

    python tools/launch.py --nproc-per-node 8 --run-folder runs/sft \
        tools/train.py --config sft.yaml --output-dir runs/sft
    python tools/launch.py --nproc-per-node 2 tools/generate.py --checkpoint runs/sft ...
    python tools/launch.py --nnodes 10 --node-rank $NODE_RANK --endpoint $HEAD:29500 \
        --nproc-per-node 8 --run-folder runs/sft tools/train.py --config sft.yaml ...
    python tools/launch.py --dry-run ...        # prints the torchrun command, plans all ranks

Start the same command on every node; only --node-rank differs, and --endpoint names node 0. When
workers die or hang, torchrun dies or hangs, or the network between nodes fails, this node's
processes are killed and started again; the nodes find each other again, and training resumes from
the newest checkpoint in --run-folder, which must be on a file system that all nodes share. On
SIGTERM and Ctrl-C the workers save and exit, then the launcher; a second Ctrl-C kills them at once.
Without --run-folder, on one node, nothing is watched or restarted, and Ctrl-C goes to the workers,
which handle it themselves.

A single node listens on the loopback interface only. Several nodes communicate over one interface
each, without passwords or encryption: whoever reaches it can disturb or read the job, so use a
network that only people you trust can reach. docs/launching.md lists the ports and explains the
choice.

Exit codes: 0 the run is complete. Not retried, since they would fail again: 17 numbers not finite,
65 data, 70 kernel, 71 GPU memory, 77 unsafe input, 78 configuration. 75: preempted by SIGTERM, or
something hung or was lost and --max-restarts are used up; the same command resumes later. 130:
Ctrl-C. Any other: the failed worker's own (128 + n for signal n), after --max-restarts. A node that
gives up stops the others with its code. RUN_FOLDER/launch/node_<rank>.json holds the state of each
node.
"""

import argparse
import dataclasses
import os
import shlex
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from megatron_chimed.command_line import CommandParser
from megatron_chimed.errors import ConfigError, run_command
from megatron_chimed.launch.limits import Limits
from megatron_chimed.launch.node_states import shared_job_id
from megatron_chimed.launch.ports import (
    BACKEND,
    Endpoint,
    Network,
    choose_network,
    loopback,
    parse_endpoint,
)
from megatron_chimed.launch.supervise import Supervisor

AGENT = "megatron_chimed.launch.torchrun"
LIMITS = {
    "max_restarts": (int, "consecutive restarts without a newer checkpoint"),
    "join_seconds": (int, "longest wait for the other nodes in one attempt"),
    "wait_seconds": (float, "longest wait for the other nodes over consecutive attempts"),
    "stall_seconds": (
        float,
        "longest time in which running workers write nothing below --run-folder; must exceed the "
        "times of start-up, a logging interval and a validation, and --parallel.timeout_seconds",
    ),
    "grace_seconds": (float, "time for workers to save and exit after SIGTERM"),
    "drain_seconds": (float, "time for the remaining ranks to exit after others have"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parses, then supervises or plans."""
    return run_command(lambda: _run(sys.argv[1:] if argv is None else list(argv)))


def _run(argv: list[str]) -> int:
    flags = _parser().parse_args(argv)
    _check(flags)
    if flags.dry_run:
        return _plan(flags)
    limits = Limits(**{name: getattr(flags, name) for name in LIMITS})
    with tempfile.TemporaryDirectory(prefix="chimed_launch_") as scratch:
        run_folder = Path(flags.run_folder or scratch)
        network = _network(flags)
        endpoint = Endpoint(host=network.address, port=0)
        if flags.nnodes > 1:
            endpoint = parse_endpoint(flags.endpoint)
            if flags.node_rank == 0:
                endpoint = Endpoint(host=network.address, port=endpoint.port)
        job_id = flags.job_id or (
            shared_job_id(run_folder, flags.node_rank, patience=limits.wait_seconds)
            if flags.nnodes > 1
            else uuid.uuid4().hex
        )
        agent = [sys.executable, "-m", AGENT, str(os.getpid())]
        return Supervisor(
            [*agent, *_torchrun_words(flags, str(endpoint), job_id)],
            run_folder=run_folder,
            node_rank=flags.node_rank,
            limits=limits if flags.run_folder else limits.unwatched(),
            environment=network.environment() | _threads(flags),
        ).run()


def _threads(flags: argparse.Namespace) -> dict[str, str]:
    """One thread for each of several ranks: torchrun's default too, without its long warning."""
    given = flags.nproc_per_node == 1 or "OMP_NUM_THREADS" in os.environ
    return {} if given else {"OMP_NUM_THREADS": "1"}


def _plan(flags: argparse.Namespace) -> int:
    words = _torchrun_words(flags, flags.endpoint or "127.0.0.1:0", flags.job_id or "RANDOM")
    print(f"torchrun {shlex.join(words)}", flush=True)
    world = ["--world-size", str(flags.nnodes * flags.nproc_per_node)]
    planning = [sys.executable, flags.script, *flags.words, "--dry-run", *world]
    return subprocess.run(planning, check=False).returncode


def _network(flags: argparse.Namespace) -> Network:
    """The interface that this node's processes listen on; prints it if there are several nodes."""
    if flags.nnodes == 1:
        return loopback()
    network = choose_network(
        parse_endpoint(flags.endpoint),
        is_first=flags.node_rank == 0,
        interface=flags.interface,
        local_addr=flags.local_addr,
    )
    print(
        f"node {flags.node_rank} communicates with the others over {network.interface} "
        f"({network.address}), without passwords or encryption: whoever reaches it there can "
        "disturb or read the job. See docs/launching.md.",
        file=sys.stderr,
        flush=True,
    )
    return network


def _parser() -> CommandParser:
    parser = CommandParser(prog="tools/launch.py", description=__doc__)
    add = parser.add_argument
    add("--nnodes", type=int, default=1, help="nodes of the job (default: 1)")
    add("--node-rank", type=int, default=0, help="this node's number, from 0 (default: 0)")
    add("--nproc-per-node", type=int, default=1, help="ranks on each node: its GPUs (default: 1)")
    add("--endpoint", help="HOST:PORT where node 0 listens for the others; with --nnodes above 1")
    add(
        "--interface",
        help="the network interface between the nodes (default: the one that reaches --endpoint)",
    )
    add("--local-addr", help="this node's address, instead of --interface")
    add("--job-id", help="the same on all nodes (default: a random one, kept in --run-folder)")
    add(
        "--run-folder",
        help="the run's --output-dir, on a file system that all nodes share; optional on one node, "
        "where nothing is restarted without it",
    )
    add("--dry-run", action="store_true", help="print the torchrun command and plan; start nothing")
    defaults = {field.name: field.default for field in dataclasses.fields(Limits)}
    for name, (kind, text) in LIMITS.items():
        flag, default = "--" + name.replace("_", "-"), defaults[name]
        add(flag, type=kind, default=default, help=f"{text} (default: {default:g})")
    add("script", help="the command that every rank runs, such as tools/train.py")
    add("words", nargs=argparse.REMAINDER, help="its arguments")
    return parser


def _check(flags: argparse.Namespace) -> None:
    """Checks the flags.

    Raises:
        ConfigError: Wrong numbers of nodes or ranks, a missing flag, or no such script.
    """
    if flags.nnodes < 1 or flags.nproc_per_node < 1 or not 0 <= flags.node_rank < flags.nnodes:
        raise ConfigError(
            f"--nnodes {flags.nnodes} --node-rank {flags.node_rank} --nproc-per-node "
            f"{flags.nproc_per_node} do not fit: nodes and ranks are 1 or more, and node ranks "
            "count from 0 to nnodes - 1."
        )
    if flags.nnodes > 1 and not flags.endpoint:
        raise ConfigError(
            f"--nnodes is {flags.nnodes}, but --endpoint is not given. Set it to node 0's address "
            "and a free port there, such as --endpoint node0:29500."
        )
    if flags.nnodes > 1 and not flags.run_folder:
        raise ConfigError(
            f"--nnodes is {flags.nnodes}, but --run-folder is not given: through it the nodes "
            "share their state. Set it to the run's output folder, on a file system that all share."
        )
    if not Path(flags.script).is_file():
        raise ConfigError(f"the script {flags.script} does not exist. Check the path.")


def _torchrun_words(flags: argparse.Namespace, endpoint: str, job_id: str) -> list[str]:
    """The arguments for torchrun, the script's included."""
    meeting = f"node_rank={flags.node_rank},timeout={flags.join_seconds}"
    return [
        *("--nnodes", str(flags.nnodes), "--nproc-per-node", str(flags.nproc_per_node)),
        *("--rdzv-backend", BACKEND, "--rdzv-id", job_id),
        *("--rdzv-endpoint", endpoint, "--rdzv-conf", meeting),
        *("--max-restarts", "0", flags.script, *flags.words),
    ]


if __name__ == "__main__":
    sys.exit(main())
