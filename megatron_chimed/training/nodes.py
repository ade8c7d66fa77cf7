"""The nodes of a job: what each is made of, and a warning where they differ."""

import socket
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from megatron_chimed.engine.agreement import Agreement

COMPARED = (
    "device_name",
    "device_memory_gib",
    "compute_capability",
    "driver",
    "cuda",
    "nccl",
    "python",
    "attention",
)
"""Of `engine.versions.environment`: what may differ, but should not; the rest must not."""

_SHOWN_NODES = 4


class Node(NamedTuple):
    """Ranks of one host that report the same."""

    host: str
    ranks: tuple[int, ...]
    facts: Mapping[str, Any]

    def describe(self) -> str:
        """One line, as the run's record holds it: `ranks 0-7: NVIDIA H200, driver 580.65.06`."""
        values = [
            str(value) if name == "device_name" else f"{name} {value}"
            for name, value in self.facts.items()
        ]
        return f"{describe_ranks(self.ranks)}: {', '.join(values)}"


def gather_nodes(record: Mapping[str, Any], agreement: Agreement) -> list[Node]:
    """The nodes of the job, by first rank; every rank calls it with its own record."""
    mine = {name: record[name] for name in COMPARED if name in record}
    answers: list[Any] = agreement.on_all_ranks(lambda: [socket.gethostname(), mine])
    ranks_of: dict[tuple[str, tuple[tuple[str, Any], ...]], list[int]] = {}
    for rank, (host, facts) in enumerate(answers):
        ranks_of.setdefault((host, tuple(facts.items())), []).append(rank)
    return [Node(host, tuple(ranks), dict(facts)) for (host, facts), ranks in ranks_of.items()]


def node_differences(nodes: Sequence[Node]) -> str:
    """A warning that names what differs, with ranks and hosts; empty if nothing does."""
    found = []
    for name in COMPARED:
        nodes_with: dict[str, list[Node]] = {}
        for node in nodes:
            nodes_with.setdefault(str(node.facts.get(name, "missing")), []).append(node)
        if len(nodes_with) > 1:
            values = (f"{value} on {_places(each)}" for value, each in nodes_with.items())
            found.append(f"{name} is {' and '.join(values)}")
    if not found:
        return ""
    return (
        f"warning: the nodes of this job differ: {'; '.join(found)}. All ranks wait for "
        "the slowest, and a result may depend on which nodes are given. Use nodes of one kind with "
        "one driver."
    )


def describe_ranks(ranks: Sequence[int]) -> str:
    """Such as `rank 3` or `ranks 0-7`, or with gaps `ranks 0-3, 6`."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    shown = ", ".join(f"{a}-{b}" if b > a else str(a) for a, b in spans)
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def _places(nodes: Sequence[Node]) -> str:
    shown = [f"{describe_ranks(node.ranks)} ({node.host})" for node in nodes[:_SHOWN_NODES]]
    more = len(nodes) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
