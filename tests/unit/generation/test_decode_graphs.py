"""Which decode steps are recorded and replayed, and that replays change no token.

A stand-in records on CPU: its replay runs the function again, on the recorded inputs, and writes
over the recorded output, as a CUDA graph does.
"""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from megatron_chimed.generation import SamplingConfig, decode_graphs, decoder, generate
from megatron_chimed.generation.decode_graphs import DecodeGraphs, Recording, graphed
from tests.unit.generation import toy


class StandIn:
    """Counts recordings and replays."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, function):
        self.recorded += 1
        output = function().clone()

        def replay():
            self.replayed += 1
            output.copy_(function())

        return Recording(replay, output)


def step(calls):
    def run(inputs, longest):
        calls.append((inputs.shape[1], longest))
        return inputs.sum(dim=0).float() + longest

    return run


def test_a_shape_is_recorded_at_its_third_use_and_replayed_for_equal_shapes_alone():
    calls, stand_in = [], StandIn()
    graphs = DecodeGraphs(step(calls), max_length=300, record=stand_in)
    outputs = [graphs(torch.full((3, 2), n), longest).tolist() for n, longest in ((1, 7), (2, 8))]
    assert outputs == [[10.0] * 2, [14.0] * 2] and calls == [(2, 7), (2, 8)]  # eager, exact lengths
    assert graphs(torch.full((3, 2), 3), 9).tolist() == [9.0 + 256] * 2
    assert (stand_in.recorded, stand_in.replayed) == (1, 1)
    assert graphs(torch.full((3, 2), 5), 256).tolist() == [15.0 + 256] * 2  # the inputs are new
    assert (stand_in.recorded, stand_in.replayed) == (1, 2)
    for batch, longest in ((2, 257), (3, 9)):  # another length, another batch
        assert graphs(torch.zeros(3, batch), longest).tolist() == [longest] * batch
    assert (stand_in.recorded, stand_in.replayed) == (1, 2)
    graphs(torch.zeros(3, 2), 258)
    assert graphs(torch.zeros(3, 2), 259).tolist() == [300.0] * 2  # no more than the cache holds


def test_so_many_graphs_and_no_more(monkeypatch):
    monkeypatch.setattr(decode_graphs, "MOST_GRAPHS", 1)
    stand_in = StandIn()
    graphs = DecodeGraphs(step([]), max_length=300, record=stand_in)
    for batch in (1, 1, 1, 2, 2, 2):
        graphs(torch.zeros(3, batch), 5)
    assert stand_in.recorded == 1


def test_what_cannot_be_captured_runs_eagerly_and_says_so():
    def refuse(function):
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = DecodeGraphs(step([]), max_length=300, record=refuse)
    graphs(torch.zeros(3, 1), 5), graphs(torch.zeros(3, 1), 5)
    with pytest.warns(UserWarning, match="without CUDA graphs, which is slower: operation not per"):
        assert graphs(torch.zeros(3, 1), 5).tolist() == [5.0]
    assert graphs(torch.zeros(3, 1), 5).tolist() == [5.0]  # and is not tried again


@pytest.mark.parametrize(("device", "tensor", "pipeline"), [("cpu", 1, 1), ("cuda", 2, 1)])
def test_cpu_and_split_models_run_the_step_itself(device, tensor, pipeline):
    layout = SimpleNamespace(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline)
    ranks = SimpleNamespace(device=torch.device(device), layout=layout)
    assert graphed(step, ranks, 9) is step


def test_a_fake_device_runs_the_step_itself():
    layout = SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1)
    ranks = SimpleNamespace(device=torch.device("cuda:0"), layout=layout)
    with FakeTensorMode():
        assert graphed(step, ranks, 9) is step


def test_replayed_steps_give_the_same_tokens(tmp_path, monkeypatch):
    stand_in = StandIn()
    with toy.toy_session(toy.save_reference(tmp_path)) as session:
        sampling = SamplingConfig(max_new_tokens=12)
        eager = generate(session, toy.PROMPTS, sampling, max_batch=2)
        monkeypatch.setattr(
            decoder,
            "graphed",
            lambda step, ranks, length: DecodeGraphs(step, max_length=length, record=stand_in),
        )
        assert generate(session, toy.PROMPTS, sampling, max_batch=2) == eager
    assert stand_in.recorded >= 1 and stand_in.replayed > 10
