"""Copy bandwidth and matmul rate of this process: what every other figure is a fraction of."""

from dataclasses import dataclass

import torch

from device_items.context import Context
from device_items.gpu import median


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Measured just now, on this device."""

    copy_bytes_per_second: float
    """Bytes read and written."""
    matmul_flops: float
    """Of a large bf16 product of random numbers."""


def measure(context: Context) -> Rates:
    """Takes well under a second, so that each item has rates of its own process."""
    plan, gpu = context.plan, context.gpu
    size, n = plan.copy_bytes // 2, plan.matmul_size
    source = torch.empty(size, device=gpu.device, dtype=torch.bfloat16).normal_()
    target = torch.empty_like(source)
    copied = gpu.milliseconds([lambda: target.copy_(source)], plan.rounds)
    a, b = (torch.randn(n, n, device=gpu.device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    multiplied = gpu.milliseconds([lambda: torch.mm(a, b, out=product)] * 4, plan.rounds)
    return Rates(
        copy_bytes_per_second=2 * 2 * size / (median(copied) * 1e-3),
        matmul_flops=2 * n**3 / (median(multiplied) * 1e-3),
    )


def run(context: Context) -> None:
    """Both rates."""
    found = measure(context)
    context.record.add("copy", found.copy_bytes_per_second / 1e12, "TB/s")
    context.record.add(
        f"matmul {context.plan.matmul_size}^3 bf16", found.matmul_flops / 1e12, "TFLOP/s"
    )
