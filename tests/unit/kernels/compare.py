"""How close a kernel must come to float64, for all kernel tests."""

from collections.abc import Callable, Sequence

import torch

from megatron_chimed.kernels import rope_frequencies

# Norm of the error over the norm of the result. Half precision cannot do better than its rounding.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}
DTYPES = list(TOLERANCES)


def relative_error(value: torch.Tensor, exact: torch.Tensor) -> float:
    """||value - exact|| / ||exact||; inf for NaN, the plain norm where `exact` is zero."""
    assert value.shape == exact.shape, f"{value.shape} is not {exact.shape}"
    value, exact = value.detach().double(), exact.detach().to(value.device, torch.float64)
    error, size = torch.linalg.vector_norm(value - exact), torch.linalg.vector_norm(exact)
    return float((error / size if size else error).nan_to_num(nan=float("inf")))


def check_against_double(
    op: Callable, reference: Callable, inputs: Sequence[torch.Tensor], tolerance: float
) -> None:
    """Compares outputs and gradients of `op` with those of `reference` in float64.

    Args:
        op: Takes the inputs; gives a tensor or a tuple of them.
        reference: The same in plain torch.
        inputs: Leaves; their values are exact in float64.
        tolerance: Largest relative error.
    """
    torch.manual_seed(1)
    leaves = [x.detach().requires_grad_() for x in inputs]
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    outputs, exact = _as_tuple(op(*leaves)), _as_tuple(reference(*doubles))
    upstream = [torch.randn_like(y) for y in outputs]
    for index, (value, truth) in enumerate(zip(outputs, exact, strict=True)):
        error = relative_error(value, truth.detach())
        assert error <= tolerance, f"output {index} is off by {error:.1e}"
    gradients = torch.autograd.grad(outputs, leaves, upstream)
    truths = torch.autograd.grad(exact, doubles, [g.double() for g in upstream])
    for index, (value, truth) in enumerate(zip(gradients, truths, strict=True)):
        assert value.dtype == leaves[index].dtype
        error = relative_error(value, truth)
        assert error <= tolerance, f"gradient {index} is off by {error:.1e}"


def bits_with_threads(compute: Callable[[], Sequence[torch.Tensor]], threads: int) -> list:
    """Results with that many CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return [x.clone() for x in compute()]
    finally:
        torch.set_num_threads(before)


def check_deterministic(compute: Callable[[], Sequence[torch.Tensor]]) -> None:
    """The same bits again, and with 1, 2 and 3 threads."""
    first = bits_with_threads(compute, 1)
    for threads in (1, 2, 3):
        again = bits_with_threads(compute, threads)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), threads


def _as_tuple(y):
    return y if isinstance(y, tuple) else (y,)


def angles_at(positions: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of RoPE [T, width/2] at these positions."""
    angles = positions[:, None] * rope_frequencies(width, device=positions.device)
    return angles.cos(), angles.sin()
