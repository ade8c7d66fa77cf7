"""The record of every node of a job, and the warning where they differ."""

from collections.abc import Sequence
from typing import Any

from megatron_chimed.engine.agreement import Agreement
from megatron_chimed.training import nodes
from megatron_chimed.training.nodes import describe_ranks, gather_nodes, node_differences

H200 = {
    "device": "cuda",
    "device_name": "NVIDIA H200",
    "device_memory_gib": 139.7,
    "driver": "580.65.06",
    "nccl": "2.27.5",
    "op.rms_norm": "fused CUDA",
}


class Ranks(Agreement):
    """Ranks that answer with given hosts and facts."""

    def __init__(self, answers: Sequence[tuple[str, dict[str, Any]]]) -> None:
        super().__init__()
        self._answers = answers

    def on_all_ranks(self, action) -> list[Any]:
        """What each would answer; `action` is called, as on every rank."""
        assert set(action()[1]) <= set(nodes.COMPARED)
        return [
            [host, {name: facts[name] for name in nodes.COMPARED if name in facts}]
            for host, facts in self._answers
        ]


def nodes_of(*answers):
    return gather_nodes(answers[0][1], Ranks(answers))


def test_equal_nodes_are_recorded_without_a_warning():
    first, second = nodes_of(*[("a", H200)] * 8, *[("b", H200)] * 8)
    assert first.describe() == (
        "ranks 0-7: NVIDIA H200, device_memory_gib 139.7, driver 580.65.06, nccl 2.27.5"
    )
    assert (second.host, second.ranks) == ("b", tuple(range(8, 16)))
    assert node_differences([first, second]) == ""


def test_a_difference_is_a_warning_with_both_values_and_their_places():
    old, other = H200 | {"driver": "570.1"}, H200 | {"device_name": "NVIDIA A100"}
    found = nodes_of(("a", H200), ("a", other), ("b", old), ("b", old))
    assert [node.describe().partition(":")[0] for node in found] == [
        "rank 0",
        "rank 1",
        "ranks 2-3",
    ]
    assert node_differences(found).startswith(
        "warning: the nodes of this job differ: device_name is NVIDIA H200 on rank 0 (a), ranks "
        "2-3 (b) and NVIDIA A100 on rank 1 (a); driver is 580.65.06 on rank 0 (a), rank 1 (a) and "
        "570.1 on ranks 2-3 (b). All ranks wait for the slowest"
    )


def test_many_nodes_are_counted():
    hosts = [(f"host{n}", H200) for n in range(9)]
    text = node_differences(nodes_of(*hosts, ("odd", H200 | {"driver": "1"})))
    assert "rank 3 (host3) and 5 more and 1 on rank 9 (odd)" in text


def test_ranks_with_gaps():
    assert describe_ranks([3]) == "rank 3"
    assert describe_ranks([0, 1, 2, 6]) == "ranks 0-2, 6"
