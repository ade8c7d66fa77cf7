"""Decode steps as CUDA graphs: the host enqueues one graph instead of a few hundred kernels.

A graph has fixed shapes and addresses, so there is one for each batch size and each length rounded
up to `LENGTH_STEP` positions; positions beyond a row's own are masked, as in the reference.
"""

import warnings
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch._subclasses.fake_tensor import FakeTensor

from megatron_chimed.engine import Ranks

LENGTH_STEP = 256
"""Positions by which the length of a graph grows: as many steps can share one."""
RECORD_AT = 3
"""The use of a shape at which it is recorded. Earlier ones run eagerly: libraries set themselves up
in the first call, and a batch that shrinks at the end of a job meets each size only once or so."""
MOST_GRAPHS = 32
"""Recorded shapes of a decoder; others run eagerly. Each keeps the memory of one step's outputs."""

Step: TypeAlias = Callable[[torch.Tensor, int], torch.Tensor | None]
"""Runs inputs int64 [2 + n, b] on the device (tokens, positions, pages) over the given length."""


class Recording(NamedTuple):
    """A recorded function without arguments."""

    replay: Callable[[], None]
    output: torch.Tensor
    """What the function returned; each replay overwrites it."""


class _Graph(NamedTuple):
    inputs: torch.Tensor
    recording: Recording


class CudaRecorder:
    """Records CUDA graphs, which share one pool of memory: only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], torch.Tensor]) -> Recording:
        """Records what the function enqueues; nothing is computed yet."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = function()
        return Recording(graph.replay, output)


class DecodeGraphs:
    """Runs decode steps, by replay where a step of the same shape was recorded.

    Args:
        step: The step itself, whose output is on this rank.
        max_length: Positions of the longest row.
        record: Makes recordings.
    """

    def __init__(
        self,
        step: Step,
        *,
        max_length: int,
        record: Callable[[Callable[[], torch.Tensor]], Recording],
    ) -> None:
        self._step, self._max_length, self._record = step, max_length, record
        self._uses: Counter[tuple[int, int]] = Counter()
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._works = True

    def __call__(self, inputs: torch.Tensor, longest: int) -> torch.Tensor | None:
        """As `step`; the result is valid until the next call."""
        shape = (inputs.shape[1], rounded_length(longest, self._max_length))
        self._uses[shape] += 1
        graph = self._graphs.get(shape) or self._try_to_record(inputs, shape)
        if graph is None:
            return self._step(inputs, longest)
        graph.inputs.copy_(inputs)
        graph.recording.replay()
        return graph.recording.output

    def _try_to_record(self, inputs: torch.Tensor, shape: tuple[int, int]) -> _Graph | None:
        is_due = self._uses[shape] >= RECORD_AT and len(self._graphs) < MOST_GRAPHS
        if not self._works or not is_due:
            return None
        static = inputs.clone()

        def function() -> torch.Tensor:
            output = self._step(static, shape[1])
            assert output is not None, "one rank holds the whole model"
            return output

        try:
            graph = _Graph(static, self._record(function))
        except RuntimeError as error:  # an op that cannot be captured: eager steps are as right
            self._works = False
            warnings.warn(f"decoding without CUDA graphs, which is slower: {error}", stacklevel=2)
            return None
        self._graphs[shape] = graph
        return graph


def rounded_length(longest: int, max_length: int) -> int:
    """The length of the graph for rows of up to `longest` positions."""
    return min(-(-longest // LENGTH_STEP) * LENGTH_STEP, max_length)


def graphed(step: Step, ranks: Ranks, max_length: int) -> Step:
    """The step with CUDA graphs where they apply, else the step itself.

    They apply on a CUDA device that holds the whole model: messages between ranks in a graph are
    not tried.

    Args:
        step: The step.
        ranks: This rank's place.
        max_length: Positions of the longest row.
    """
    layout = ranks.layout
    is_whole = layout.tensor_parallel_size * layout.pipeline_parallel_size == 1
    if ranks.device.type != "cuda" or not is_whole:
        return step
    if isinstance(torch.empty(0, device=ranks.device), FakeTensor):
        return step
    return DecodeGraphs(step, max_length=max_length, record=CudaRecorder())
