"""Gradient of a linear layer's weight, added straight into its accumulation buffer."""

import torch

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels.checks import check_float, check_like, check_shape
from megatron_chimed.kernels.native import ComposedOp

WEIGHT_GRADIENT = ComposedOp(
    name="wgrad_gemm_accum",
    cpu=("torch addmm", "in half precision torch has no sum into fp32: product, then add"),
    cuda=("torch addmm", "cuBLAS adds half-precision products into fp32"),
)


def wgrad_gemm_accum_fp32(
    total_input: torch.Tensor, grad_output: torch.Tensor, main_grad: torch.Tensor
) -> None:
    """main_grad += grad_output^T @ total_input, with an fp32 `main_grad`.

    The name and the argument order are those under which megatron-core looks for it.

    Args:
        total_input: The layer's input [.., in].
        grad_output: [.., out], same dtype and device.
        main_grad: [out, in] fp32, changed in place.

    Raises:
        KernelError: An argument does not fit.
    """
    _check("wgrad_gemm_accum_fp32", total_input, grad_output, main_grad)
    if main_grad.dtype != torch.float32:
        raise KernelError(
            f"wgrad_gemm_accum_fp32: main_grad is {main_grad.dtype}, expected torch.float32."
        )
    accumulate_weight_gradient(total_input, grad_output, main_grad)


def wgrad_gemm_accum_fp16(
    total_input: torch.Tensor, grad_output: torch.Tensor, main_grad: torch.Tensor
) -> None:
    """As `wgrad_gemm_accum_fp32`, with a `main_grad` in fp16 or bf16, the dtype of the operands."""
    _check("wgrad_gemm_accum_fp16", total_input, grad_output, main_grad)
    check_like("wgrad_gemm_accum_fp16", "total_input", total_input, main_grad=main_grad)
    accumulate_weight_gradient(total_input, grad_output, main_grad)


def accumulate_weight_gradient(
    total_input: torch.Tensor, grad_output: torch.Tensor, main_grad: torch.Tensor
) -> None:
    """main_grad += grad_output^T @ total_input, in one matrix product where torch has one.

    cuBLAS adds into an fp32 matrix from half-precision operands: no gradient in half precision
    ever exists. torch has no such product on CPU: there the product is rounded to the operands'
    dtype and added.
    """
    rows = total_input.reshape(-1, total_input.shape[-1])  # [T, in]
    upstream = grad_output.reshape(-1, grad_output.shape[-1]).t()  # [out, T]
    if main_grad.dtype == rows.dtype:
        torch.addmm(main_grad, upstream, rows, out=main_grad)
    elif main_grad.is_cuda:
        torch.addmm(main_grad, upstream, rows, out_dtype=main_grad.dtype, out=main_grad)
    else:
        main_grad.add_(upstream @ rows)


def _check(op: str, total_input, grad_output, main_grad) -> None:
    check_float(op, total_input=total_input, main_grad=main_grad)
    check_like(op, "total_input", total_input, grad_output=grad_output)
    rows = total_input.shape[:-1]
    check_shape(op, "grad_output", grad_output, (*rows, *grad_output.shape[-1:]))
    check_shape(op, "main_grad", main_grad, (grad_output.shape[-1], total_input.shape[-1]))
    if main_grad.device != total_input.device:
        raise KernelError(
            f"{op}: main_grad is on {main_grad.device}, but total_input on {total_input.device}."
        )
