"""Each kernel's time, forward and backward apart, beside torch's, megatron-core's and Liger's.

Backward is forward and backward together minus forward: cross-entropy overwrites its logits, so its
backward cannot run twice. A graph's replay is the kernels' own time, eager includes the host's.
What torch has to compile is in an item of its own, the last but one.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import kernel_baselines
import torch
from kernel_accuracy import NUM_SETS, forward_backward
from kernel_cases import Case, all_cases

from device_items import rates
from device_items.context import Context
from device_items.gpu import median
from device_items.record import Goal

OURS = "ours"
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward and backward"
# Least fraction of the copy bandwidth of the same run. Registers and bytes in flight (csrc/README)
# allow it; published kernels for these ops reach 79 to 90 %.
OF_COPY = {
    ("rms_norm", FORWARD): 0.80,
    ("rms_norm", BACKWARD): 0.65,
    ("add_rms_norm", FORWARD): 0.80,
    ("add_rms_norm", BACKWARD): 0.65,
    ("swiglu", FORWARD): 0.85,
    ("swiglu", BACKWARD): 0.85,
    ("rope", FORWARD): 0.75,
    ("rope", BACKWARD): 0.75,
    ("cross_entropy", BOTH): 0.60,
    ("adamw", FORWARD): 0.80,
}
# How many times as fast as a baseline.
FASTER_THAN = {
    ("rms_norm", BACKWARD, "F.rms_norm"): 2.5,
    ("swiglu", BOTH, kernel_baselines.LOCAL): 2.0,
    ("rope", BOTH, kernel_baselines.LOCAL): 4.0,
    ("cross_entropy", BOTH, kernel_baselines.LOCAL): 4.0,
    ("adamw", FORWARD, "torch fused, mul, copy"): 1.1,
}
# Memory of cross-entropy beyond its logits, as a fraction of them.
EXTRA_MEMORY = 0.05

EAGER, REPLAYED = "eager", "replayed"
Times = dict[str, dict[str, float]]
"""How it ran -> direction -> milliseconds; what a graph cannot capture was not replayed."""


def run(context: Context) -> None:
    """Every case but what is compiled."""
    try:
        copy = rates.measure(context).copy_bytes_per_second
        for case in all_cases(context.device, torch.bfloat16, context.plan.kernels):
            variants = {k: v for k, v in case.variants.items() if k not in case.compiled}
            times = measure_case(context, case, variants)
            _judge(context, case, times, copy)
            _compare(context, case, times)
            if case.op == "cross_entropy":
                _extra_memory(context, case)
            context.gpu.reset_peak()
    finally:
        kernel_baselines.close()


def run_compiled(context: Context) -> None:
    """megatron-core's compiled ops, and torch.compile of the plain formula."""
    if context.is_rehearsal:
        torch.compiler.set_stance("force_eager")
    try:
        for case in all_cases(context.device, torch.bfloat16, context.plan.kernels):
            variants = {k: v for k, v in case.variants.items() if k in {OURS, *case.compiled}}
            if case.exact is not None:
                plain = case.variants.get("eager", case.exact)
                variants["torch.compile"] = torch.compile(plain, dynamic=False)
            if len(variants) > 1:
                _compare(context, case, measure_case(context, case, variants))
            context.gpu.reset_peak()
    finally:
        kernel_baselines.close()
        torch.compiler.set_stance("default")


def measure_case(
    context: Context, case: Case, variants: Mapping[str, Callable]
) -> dict[str, Times]:
    """Times of each variant; a baseline that fails is a row, ours raises."""
    sets = [case.make() for _ in range(NUM_SETS)]
    timers = {
        EAGER: context.gpu.milliseconds,
        REPLAYED: context.gpu.replayed_milliseconds,
    }
    times: dict[str, Times] = {}
    for name, function in variants.items():
        times[name] = {}
        for how, timer in timers.items():
            try:
                times[name][how] = measure_variant(
                    lambda calls, timer=timer: median(timer(calls, context.plan.rounds)),
                    case,
                    function,
                    sets,
                )
            except Exception as error:
                if name == OURS:
                    raise
                why = f"{type(error).__name__}: {error}"
                context.record.unavailable(f"{case.op}: {name}, {how}", why)
    return times


def measure_variant(
    timer: Callable, case: Case, function: Callable, sets: list
) -> dict[str, float]:
    """Milliseconds of one variant in each direction."""
    numbers = range(NUM_SETS)
    if case.exact is None:
        return {FORWARD: timer([functools.partial(function, *sets[i]) for i in numbers])}
    forward = timer([functools.partial(_recorded, function, sets, i) for i in numbers])
    both = timer([functools.partial(forward_backward, function, sets, i) for i in numbers])
    return {FORWARD: forward, BACKWARD: max(both - forward, 1e-6), BOTH: both}


def _judge(context: Context, case: Case, times: dict[str, Times], copy: float) -> None:
    """One row for each direction: the fraction of the copy bandwidth."""
    moved = {FORWARD: case.forward_bytes, BACKWARD: case.backward_bytes, BOTH: case.traffic}
    for direction, milliseconds in times[OURS][REPLAYED].items():
        least = OF_COPY.get((case.op, direction))
        context.record.add(
            f"{case.op} {case.size} {direction}",
            moved[direction] / (milliseconds * 1e-3) / copy,
            "of the copy bandwidth",
            goal=None if least is None else Goal(at_least=least, needs_gpu=True),
            milliseconds={
                name: {how: each[direction] for how, each in found.items()}
                for name, found in times.items()
            },
        )


def _compare(context: Context, case: Case, times: dict[str, Times]) -> None:
    """One row for each baseline and direction: how many times as fast ours is."""
    for baseline, theirs in times.items():
        if baseline == OURS or not theirs:
            continue
        how = REPLAYED if REPLAYED in theirs else EAGER
        for direction, milliseconds in times[OURS][how].items():
            least = FASTER_THAN.get((case.op, direction, baseline))
            context.record.add(
                f"{case.op} {case.size} {direction} against {baseline}",
                theirs[how][direction] / milliseconds,
                "x",
                goal=None if least is None else Goal(at_least=least, needs_gpu=True),
                how=how,
                milliseconds=theirs[how][direction],
            )


def _extra_memory(context: Context, case: Case) -> None:
    """Peak beyond what forward and backward are given."""
    sets = [case.make()]
    context.gpu.reset_peak()
    before = context.gpu.peak_gib()
    forward_backward(case.variants[OURS], sets, 0)
    extra = (context.gpu.peak_gib() - before) * 2**30 / case.forward_bytes
    context.record.add(
        f"{case.op} {case.size}: extra memory",
        extra,
        "of the logits",
        goal=Goal(at_most=EXTRA_MEMORY),
    )


def _recorded(function: Callable, sets: list, number: int) -> Any:
    """Forward as training runs it: it keeps what backward needs."""
    return function(*(x.detach().requires_grad_() for x in sets[number]))
