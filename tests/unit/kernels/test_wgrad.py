"""Weight gradients added into the accumulation buffer."""

import pytest
import torch

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels import wgrad_gemm_accum_fp16, wgrad_gemm_accum_fp32
from tests.unit.kernels.compare import DTYPES, TOLERANCES, relative_error

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def make(dtype, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device, or no option --gpu")
    torch.manual_seed(0)
    x = torch.randn(3, 5, 24, device=device).to(dtype)  # [s, b, in]
    dy = torch.randn(3, 5, 40, device=device).to(dtype)
    return x, dy


def exact(x, dy, main_grad):
    product = dy.double().reshape(-1, dy.shape[-1]).t() @ x.double().reshape(-1, x.shape[-1])
    return main_grad.double() + product


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_fp32_buffer(device, dtype):
    x, dy = make(dtype, device)
    main_grad = torch.randn(40, 24, device=device)
    truth = exact(x, dy, main_grad)
    where = main_grad.data_ptr()
    wgrad_gemm_accum_fp32(x, dy, main_grad)
    assert main_grad.data_ptr() == where
    assert relative_error(main_grad, truth) <= TOLERANCES[dtype]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_buffer_in_half_precision(device, dtype):
    x, dy = make(dtype, device)
    main_grad = torch.randn(40, 24, device=device).to(dtype)
    truth = exact(x, dy, main_grad)
    wgrad_gemm_accum_fp16(x, dy, main_grad)
    assert relative_error(main_grad, truth) <= TOLERANCES[dtype]


def test_bad_arguments_are_named():
    x, dy = make(torch.float32, "cpu")
    with pytest.raises(KernelError, match="main_grad is torch.float16, expected torch.float32"):
        wgrad_gemm_accum_fp32(x, dy, torch.zeros(40, 24).half())
    with pytest.raises(KernelError, match=r"main_grad has shape \[24, 40\], expected \[40, 24\]"):
        wgrad_gemm_accum_fp32(x, dy, torch.zeros(24, 40))
    with pytest.raises(KernelError, match=r"grad_output has shape \[2, 5, 40\], expected \[3, 5"):
        wgrad_gemm_accum_fp32(x, dy[:2], torch.zeros(40, 24))
    with pytest.raises(KernelError, match="grad_output has dtype torch.float16, but total_input"):
        wgrad_gemm_accum_fp32(x, dy.half(), torch.zeros(40, 24))
    with pytest.raises(KernelError, match="main_grad has dtype torch.float32, but total_input"):
        wgrad_gemm_accum_fp16(x.half(), dy.half(), torch.zeros(40, 24))
