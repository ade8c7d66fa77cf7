"""Timing for all benchmarks: interleaved variants in one process, with the spread.

Variants take turns within every round (A B A B), so that a machine that slows down slows all of
them. CPU time is process time of one thread; CUDA time comes from events around many repetitions.
Inputs are several sets of fresh random numbers that take turns too. Warm-up rounds are dropped.
"""

import argparse
import ctypes
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

# glibc's mallopt: numbers of M_TRIM_THRESHOLD and M_MMAP_MAX in malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_INT_MAX = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Times of one variant in milliseconds, or ratios of two."""

    median: float
    low: float
    """20th percentile."""
    high: float
    """80th percentile."""
    minimum: float
    samples: tuple[float, ...]
    """All values in the order of the rounds."""

    @classmethod
    def of(cls, milliseconds: list[float]) -> "Spread":
        """Summarises times; of a single one, all percentiles are that one."""
        twice = milliseconds * 2 if len(milliseconds) == 1 else milliseconds
        fifths = statistics.quantiles(twice, n=5, method="inclusive")
        return cls(
            median=statistics.median(milliseconds),
            low=fifths[0],
            high=fifths[-1],
            minimum=min(milliseconds),
            samples=tuple(milliseconds),
        )


def at_least_one(text: str) -> int:
    """Type of a flag that counts what is measured.

    Raises:
        ArgumentTypeError: It is no whole number, or below 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def keep_freed_memory() -> None:
    """Stops malloc from returning memory to the system, for all variants.

    Otherwise every large output is paid for again in page faults, which drown what is measured and
    which a training run pays once. Does nothing where the C library has no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _INT_MAX)


def interleave(
    variants: Mapping[str, Callable[[int], Any]], *, device: str, rounds: int, warmups: int = 2
) -> dict[str, Spread]:
    """Times variants, alternating between them.

    Args:
        variants: Name -> function of the round's number, which picks the input set.
        device: `cpu` or `cuda`.
        rounds: Measured rounds.
        warmups: Rounds before them; compilation happens there.

    Returns:
        Name -> times of one call.
    """
    measure = _cuda_milliseconds if device == "cuda" else _cpu_milliseconds
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(warmups + rounds):
        first = number % len(variants)  # takes turns too: none always follows the same other
        for name in [*variants][first:] + [*variants][:first]:
            elapsed = measure(variants[name], number)
            if number >= warmups:
                times[name].append(elapsed)
    return {name: Spread.of(values) for name, values in times.items()}


def _cpu_milliseconds(function: Callable[[int], Any], number: int) -> float:
    start = time.process_time()
    function(number)
    return (time.process_time() - start) * 1e3


def _cuda_milliseconds(function: Callable[[int], Any], number: int) -> float:
    # The device works through a queue while the host fills it: launch time hides where it can.
    repetitions = 10
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for index in range(repetitions):
        function(number + index)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / repetitions


def paired_ratio(times: Spread, baseline: Spread) -> Spread:
    """Speed relative to the baseline, round by round: common slow-downs cancel."""
    pairs = zip(times.samples, baseline.samples, strict=True)
    return Spread.of([theirs / ours for ours, theirs in pairs])


def copy_bandwidth(device: str, *, gigabytes: float) -> float:
    """Bytes read and written per second by copying, in GB/s: the ceiling for these ops."""
    size = int(gigabytes * 1e9 / 4)
    source, target = (torch.ones(size, dtype=torch.float32, device=device) for _ in range(2))
    spread = interleave({"copy": lambda _: target.copy_(source)}, device=device, rounds=9)["copy"]
    return 2 * size * 4 / (spread.minimum * 1e-3) / 1e9


def machine(device: str) -> dict[str, Any]:
    """The machine and software that a result was measured with."""
    facts = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }
    if device == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return facts


def as_json(spread: Spread) -> dict[str, float]:
    """Plain numbers for a result file."""
    return asdict(spread)


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__})"
    return result.stdout.strip()
