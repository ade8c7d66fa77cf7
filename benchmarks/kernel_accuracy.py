"""Forward and backward of a case, and how far our op is from float64."""

import math
from collections.abc import Callable, Sequence

import torch
from kernel_cases import Case, Tensors

# Relative to float64, output and gradients alike; bf16 is all rounding.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}
NUM_SETS = 3


def forward_backward(
    function: Callable, sets: Sequence[Tensors], number: int
) -> tuple[Tensors, Tensors]:
    """Outputs and gradients for input set `number`.

    The upstream gradient of each output is made of numbers of another set that exist already.
    """
    leaves = [x.detach().requires_grad_() for x in sets[number % len(sets)]]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sources = [x for x in sets[(number + 1) % len(sets)] if x.dim() > 1]
    upstream = [_upstream(y, sources[0]) for y in outputs]
    return outputs, torch.autograd.grad(outputs, leaves, upstream)


def relative_error(case: Case, inputs: Tensors) -> float:
    """The largest ||ours - exact|| / ||exact|| of outputs and gradients; infinite for NaN."""
    assert case.exact is not None, f"{case.op} has no formula to compare with"
    inputs = tuple(x.clone() for x in inputs)  # the op may overwrite them
    doubles = tuple(x.double() for x in inputs)
    outputs, gradients = forward_backward(case.variants["ours"], [inputs], 0)
    truths, true_gradients = forward_backward(case.exact, [doubles], 0)
    pairs = zip((*outputs, *gradients), (*truths, *true_gradients), strict=True)
    return max(error_of(value, exact) for value, exact in pairs)


def error_of(value: torch.Tensor, exact: torch.Tensor) -> float:
    """||value - exact|| / ||exact||; infinite for NaN."""
    error = float((value.double() - exact).detach().norm() / exact.detach().double().norm())
    return math.inf if math.isnan(error) else error


def _upstream(output: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    flat = source.detach().view(-1)[: output.numel()]
    return flat.view(output.shape).to(output.dtype)
