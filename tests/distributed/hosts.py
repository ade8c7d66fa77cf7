"""Two hosts on one machine: network namespaces joined by a veth pair, or the loopback interface."""

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from megatron_chimed.launch.process_tree import running_children
from tests.integration.commands import ROOT, kill_tree

IP_TIMEOUT_SECONDS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Host:
    """Where a launcher runs."""

    name: str
    prefix: tuple[str, ...]
    """What to put before a command so that it runs there."""
    address: str
    interface: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hosts:
    """Two hosts; the first holds the endpoint."""

    pair: tuple[Host, Host]
    endpoint: str

    def set_link(self, state: str) -> None:
        """Sets the link between the two `up` or `down`; only namespaces have one."""
        host = self.pair[1]
        assert host.prefix, "the loopback interface is no link"
        _run(*host.prefix, "ip", "link", "set", host.interface, state)


@contextlib.contextmanager
def namespaces() -> Iterator[Hosts | None]:
    """Two network namespaces with a link between them; None where the machine does not allow it."""
    names = [f"chimed{os.getpid()}{letter}" for letter in "ab"]
    links = [f"mc{os.getpid() % 10**7}{letter}" for letter in "ab"]
    made = None
    try:
        if shutil.which("ip") and os.geteuid() == 0:
            with contextlib.suppress(subprocess.CalledProcessError):
                made = _make(names, links)
        yield made
    finally:
        if shutil.which("ip"):
            # A namespace takes its link with it; whatever was not made fails to go.
            gone = [["netns", "del", name] for name in names] + [["link", "del", links[0]]]
            for words in gone:
                subprocess.run(["ip", *words], capture_output=True, timeout=IP_TIMEOUT_SECONDS)


def _make(names: Sequence[str], links: Sequence[str]) -> Hosts:
    for name in names:
        _run("ip", "netns", "add", name)
    _run("ip", "link", "add", links[0], "type", "veth", "peer", "name", links[1])
    hosts = []
    for number, (name, link) in enumerate(zip(names, links, strict=True), start=1):
        host = Host(
            name=name,
            prefix=("ip", "netns", "exec", name),
            address=f"10.99.0.{number}",
            interface=link,
        )
        _run("ip", "link", "set", link, "netns", name)
        _run(*host.prefix, "ip", "addr", "add", f"{host.address}/24", "dev", link)
        for interface in ("lo", link):
            _run(*host.prefix, "ip", "link", "set", interface, "up")
        hosts.append(host)
    return Hosts(pair=tuple(hosts), endpoint=f"{hosts[0].address}:29500")


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=IP_TIMEOUT_SECONDS)


def loopback() -> Hosts:
    """The same machine twice: processes can die there, but nothing parts them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    host = Host(name="localhost", prefix=(), address="127.0.0.1", interface="lo")
    return Hosts(pair=(host, host), endpoint=f"{host.address}:{port}")


class Launchers:
    """`tools/launch.py` on both hosts with one rank each; leaving the block ends what still runs.

    Args:
        hosts: Where.
        words: What follows the launcher's own flags.
        flags: More of these.
        folder: For the output of each.
    """

    def __init__(
        self, hosts: Hosts, words: Sequence, *, flags: Sequence[str], folder: Path
    ) -> None:
        self._logs = [folder / f"node_{rank}.log" for rank in range(2)]
        self._launchers: list[subprocess.Popen] = []
        for rank, host in enumerate(hosts.pair):
            meeting = ("--nnodes", "2", "--node-rank", str(rank), "--endpoint", hosts.endpoint)
            meeting = (*meeting, *flags)
            with open(self._logs[rank], "w") as log:
                self._launchers.append(
                    subprocess.Popen(
                        [*host.prefix, sys.executable, "tools/launch.py", *meeting]
                        + [str(word) for word in words],
                        cwd=ROOT,
                        env=os.environ | {"OMP_NUM_THREADS": "1"},
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )

    def __enter__(self) -> "Launchers":
        return self

    def __exit__(self, *_: object) -> None:
        for launcher in self._launchers:
            for agent in running_children(launcher.pid):
                kill_tree(agent)
            launcher.kill()
            launcher.wait()

    def pid(self, node: int) -> int:
        """Process id of a node's launcher."""
        return self._launchers[node].pid

    def agent(self, node: int) -> int:
        """Process id of a node's torchrun."""
        return running_children(self._launchers[node].pid)[0]

    def worker(self, node: int) -> int:
        """Process id of a node's rank."""
        return running_children(self.agent(node))[0]

    def log(self, node: int) -> str:
        """What a node has said so far."""
        return self._logs[node].read_text(encoding="utf-8")

    def until(self, condition: Callable[[], object], seconds: float) -> None:
        """Waits for something to become true."""
        deadline = time.monotonic() + seconds
        while not condition():
            ended = [launcher.poll() for launcher in self._launchers]
            assert ended == [None, None] and time.monotonic() < deadline, (
                f"did not happen within {seconds} s; launchers ended with {ended}\n{self}"
            )
            time.sleep(0.02)

    def codes(self, seconds: float) -> list[int]:
        """Exit codes of both; every end that does not come is an error."""
        deadline = time.monotonic() + seconds
        try:
            return [launcher.wait(deadline - time.monotonic()) for launcher in self._launchers]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s\n{self}") from None

    def __str__(self) -> str:
        return "\n".join(f"---- node {node}\n{self.log(node)}" for node in range(2))
