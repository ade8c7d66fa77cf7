"""Each kernel against float64: at 13B shapes, at unaligned shards, past 2^31 elements.

Memory is poisoned, so that an element that no kernel writes is a NaN and fails.
"""

import contextlib
from collections.abc import Callable, Iterator

import kernel_baselines
import torch
import torch.nn.functional as F
from kernel_accuracy import TOLERANCES, error_of, relative_error
from kernel_cases import EPS, all_cases

from device_items.context import Context
from device_items.record import Goal
from megatron_chimed import kernels

EDGE_ROWS = 3  # compared at both ends of a tensor too large for float64


def run(context: Context) -> None:
    """All three."""
    torch.manual_seed(0)
    try:
        with poisoned():
            check_shapes(context)
            check_unaligned(context)
            check_past(context)
    finally:
        kernel_baselines.close()


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """New memory is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def check_shapes(context: Context) -> None:
    """Outputs and gradients of every op that has a gradient."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for case in all_cases(context.device, dtype, context.plan.accuracy):
            if case.exact is None:
                continue
            error = relative_error(case, case.make())
            goal = Goal(at_most=TOLERANCES[dtype])
            name = str(dtype).removeprefix("torch.")
            context.record.add(f"{case.op} {case.size} {name}", error, "relative", goal=goal)
            context.gpu.reset_peak()


def check_unaligned(context: Context) -> None:
    """AdamW and the norm on shards that start at any multiple of an element.

    The distributed optimizer cuts a buffer into equal shards: at 32, 64 and 128 ranks those of 13B
    start at multiples of 4, 2 and 1 elements.
    """
    count, size = context.plan.accuracy.adamw
    for offset in (0, 1, 2, 4):
        parts = [torch.randn(offset + size, device=context.device)[offset:] for _ in range(count)]
        exact = torch.cat([part.double() for part in parts]).norm()
        error = error_of(kernels.l2_norm(parts, backend="fused"), exact)
        context.record.add(
            f"l2_norm, start {offset}", error, "relative", goal=Goal(at_most=1e-5), size=size
        )
        error = adamw_error(context.device, size, offset)
        context.record.add(
            f"adamw, start {offset}", error, "relative", goal=Goal(at_most=1e-5), size=size
        )


def adamw_error(device: str, size: int, offset: int) -> float:
    """The largest relative error of one step on a shard, its moments and its copy."""
    made = [torch.randn(size + offset, device=device)[offset:] for _ in range(3)]
    p, g, m = made
    v = torch.rand(size + offset, device=device)[offset:]
    copy = torch.empty(size + offset, device=device, dtype=torch.bfloat16)[offset:]
    settings = kernels.AdamWStep(lr=1e-2, step=3, weight_decay=0.1, grad_scale=0.5)
    exact = _adamw(p.double(), g.double(), m.double(), v.double(), settings)
    kernels.adamw_(
        [p], [g], exp_avgs=[m], exp_avg_sqs=[v], copies=[copy], settings=settings, backend="fused"
    )
    assert torch.equal(copy, p.to(copy.dtype)), "the copy is not the rounded parameter"
    return max(error_of(value, truth) for value, truth in zip((p, m, v), exact, strict=True))


def _adamw(p, g, m, v, settings):
    """Algorithm 2 of arXiv 1711.05101."""
    beta1, beta2 = settings.betas
    g = g * settings.grad_scale
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    first, second = (1 - beta**settings.step for beta in settings.betas)
    p = p * (1 - settings.lr * settings.weight_decay)
    return p - settings.lr * (m / first) / ((v / second).sqrt() + settings.eps), m, v


def check_past(context: Context) -> None:
    """Ops on one tensor with more elements than an int32 counts, compared at both ends."""
    goal = Goal(at_most=TOLERANCES[torch.bfloat16])
    for name, columns, op, exact in _row_ops(context):
        rows = context.plan.past // columns + EDGE_ROWS + 1
        x = torch.empty(rows, columns, device=context.device, dtype=torch.bfloat16).normal_()
        ends = torch.cat((x[:EDGE_ROWS], x[-EDGE_ROWS:])).double()
        found = op(x)
        error = error_of(torch.cat((found[:EDGE_ROWS], found[-EDGE_ROWS:])), exact(ends))
        context.record.add(f"{name} past 2^31", error, "relative", goal=goal, elements=x.numel())
        del x, found, ends
        context.gpu.reset_peak()
    x = torch.ones(context.plan.past + 8, device=context.device, dtype=torch.bfloat16)
    exact = torch.tensor(float(x.numel()), dtype=torch.float64, device=context.device).sqrt()
    error = error_of(kernels.l2_norm([x], backend="fused"), exact)
    context.record.add("l2_norm past 2^31", error, "relative", goal=goal, elements=x.numel())
    del x
    error = adamw_error_past(context)
    context.record.add("adamw past 2^31", error, "relative", goal=Goal(at_most=1e-5))


def _row_ops(context: Context) -> Iterator[tuple[str, int, Callable, Callable]]:
    """(name, columns, op on [T, columns], the same in float64)."""
    sizes = context.plan.accuracy
    h, f = sizes.norm[1][0], sizes.swiglu[1]
    weight = torch.ones(h, device=context.device, dtype=torch.bfloat16)
    yield (
        "rms_norm",
        h,
        lambda x: kernels.rms_norm(x, weight, eps=EPS, backend="fused"),
        lambda x: F.rms_norm(x, (h,), weight.double(), EPS),
    )
    yield (
        "swiglu",
        2 * f,
        lambda x: kernels.swiglu(x, backend="fused"),
        lambda x: F.silu(x[:, :f]) * x[:, f:],
    )
    v = sizes.cross_entropy[1][-2]
    shard = kernels.VocabShard(size=v)

    def last_id(x: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x),), v - 1, device=x.device)

    yield (
        "cross_entropy",
        v,
        lambda x: kernels.vocab_parallel_cross_entropy(x, last_id(x), shard=shard, backend="fused"),
        lambda x: F.cross_entropy(x, last_id(x), reduction="none"),
    )


def adamw_error_past(context: Context) -> float:
    """One step over a parameter with that many elements, compared at its end."""
    size, device = context.plan.past + 8, context.device
    p, g, m = (torch.empty(size, device=device).normal_() for _ in range(3))
    v = torch.empty(size, device=device).uniform_()
    settings = kernels.AdamWStep(lr=1e-2, step=3, weight_decay=0.1)
    end = [x[-64:].double() for x in (p, g, m, v)]
    kernels.adamw_([p], [g], exp_avgs=[m], exp_avg_sqs=[v], settings=settings, backend="fused")
    pairs = zip((p, m, v), _adamw(*end, settings), strict=True)
    return max(error_of(value[-64:], truth) for value, truth in pairs)
