"""A linear layer's matrix products on CPU, by the faster of the two libraries in torch.

For fp32 torch calls MKL, whose AVX-512 code is for Intel's processors alone. oneDNN, which torch
itself takes for bf16, has it for all that know the instructions: measured on an AMD EPYC, 1.05 to
1.13 times as fast for large products.
"""

import functools

import torch

from megatron_chimed.kernels.native import ComposedOp

LINEAR = ComposedOp(
    name="linear",
    cpu=("oneDNN or MKL", "oneDNN is ahead for large fp32 products, MKL for small ones"),
    cuda=("cuBLAS", "nothing is faster"),
)

ONEDNN_PRODUCTS = 1 << 23
"""Multiplications from which oneDNN is faster: its overhead is 12 us per call."""


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The product x @ weight^T; no gradient flows.

    Args:
        x: [.., in].
        weight: [out, in], or a transposed view of [in, out]; same dtype and device.

    Returns:
        [.., out].
    """
    if _takes_onednn(x, weight):
        rows = x.reshape(-1, x.shape[-1])  # [T, in]: with more dimensions it would return a view
        y = torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
        return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], weight.shape[0]))
    return x.matmul(weight.t())


def _takes_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    return x.numel() * weight.shape[0] >= ONEDNN_PRODUCTS and _has_both_libraries()


@functools.cache
def _has_both_libraries() -> bool:
    """Whether torch has the op: there is no MKL on Arm, and the op is not public API."""
    libraries = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
    return libraries and hasattr(torch.ops.mkldnn, "_linear_pointwise")
