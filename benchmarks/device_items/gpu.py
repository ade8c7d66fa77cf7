"""The few calls of torch.cuda that the items need, and their stand-in for a machine without a GPU.

Items call nothing else of torch.cuda, so that a rehearsal runs every other line of them.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

WARMUPS = 3


class Gpu:
    """The current CUDA device."""

    device = "cuda"

    def name(self) -> str:
        """Its name."""
        return torch.cuda.get_device_name()

    def facts(self) -> dict[str, Any]:
        """Its properties."""
        found = torch.cuda.get_device_properties(0)
        return {
            "compute capability": f"{found.major}.{found.minor}",
            "multiprocessors": found.multi_processor_count,
            "memory GiB": round(found.total_memory / 2**30, 1),
            "L2 MiB": round(found.L2_cache_size / 2**20, 1),
            "architectures of torch": " ".join(torch.cuda.get_arch_list()),
        }

    def synchronize(self) -> None:
        """Waits for the device."""
        torch.cuda.synchronize()

    def milliseconds(self, calls: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
        """Time of one call, eager: the host fills a queue, and launches hide where they can."""
        for _ in range(WARMUPS):
            _run(calls)
        return self._timed(lambda: _run(calls), rounds, len(calls))

    def replayed_milliseconds(self, calls: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
        """Time of one call as part of a CUDA graph of all: without the host.

        The calls run and are captured on one stream, so that backward, which runs where its forward
        ran, is captured too.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUPS):
                _run(calls)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            _run(calls)
        for _ in range(WARMUPS):
            graph.replay()
        times = self._timed(graph.replay, rounds, len(calls))
        graph.reset()
        return times

    def busy_milliseconds(self, call: Callable[[], Any]) -> float:
        """How long the device worked in a call, by the profiler."""
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            call()
            self.synchronize()
        events = profiler.events() or []
        on_device = [x for x in events if x.device_type == torch.autograd.DeviceType.CUDA]
        return sum(event.time_range.elapsed_us() for event in on_device) / 1e3

    def reset_peak(self) -> None:
        """Frees what is unused and forgets the peak."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float:
        """Most memory that tensors took since then."""
        return torch.cuda.max_memory_allocated() / 2**30

    def limit_memory(self, fraction: float) -> None:
        """Tensors may take this share of the memory; more is an out-of-memory error."""
        torch.cuda.set_per_process_memory_fraction(fraction)

    def _timed(self, call: Callable[[], Any], rounds: int, count: int) -> list[float]:
        times = []
        for _ in range(rounds):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / count)
        return times


class StandIn(Gpu):
    """The CPU in its place: the same calls, and figures that mean nothing."""

    device = "cpu"

    def name(self) -> str:
        """That there is none."""
        return "none (rehearsal on the CPU)"

    def facts(self) -> dict[str, Any]:
        """Nothing is known of it."""
        return {}

    def synchronize(self) -> None:
        """The CPU has done what it was told."""

    def replayed_milliseconds(self, calls: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
        """Runs the calls as often as they would be captured and replayed."""
        return self.milliseconds(calls, rounds)

    def reset_peak(self) -> None:
        """Nothing is counted."""

    def peak_gib(self) -> float:
        """Nothing is counted."""
        return 0.0

    def limit_memory(self, fraction: float) -> None:
        """Fails at once, as the next tensor would."""
        raise torch.OutOfMemoryError(f"rehearsed: no more than {fraction:.0%} of nothing")

    def _timed(self, call: Callable[[], Any], rounds: int, count: int) -> list[float]:
        times = []
        for _ in range(rounds):
            begin = time.perf_counter()
            call()
            times.append((time.perf_counter() - begin) * 1e3 / count)
        return times


def median(times: Sequence[float]) -> float:
    """The median; a zero would be no time."""
    return max(statistics.median(times), 1e-9)


def _run(calls: Sequence[Callable[[], Any]]) -> None:
    for call in calls:
        call()
