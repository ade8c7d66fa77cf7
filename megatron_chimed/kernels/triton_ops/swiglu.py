"""SwiGLU in Triton: a program computes `BLOCK` columns of one row."""

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from megatron_chimed.kernels.triton_ops.launch import launch, register

BLOCK = 1024


@triton.jit
def forward_kernel(gate_up_ptr, y_ptr, width, BLOCK: tl.constexpr):
    """Computes silu(gate) * up for gate_up [T, 2 width], y [T, width]."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate_ptrs = gate_up_ptr + row * 2 * width + columns
    gate = tl.load(gate_ptrs, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_ptrs + width, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * width + columns, gate * tl.sigmoid(gate) * up, mask=inside)


@triton.jit
def backward_kernel(dy_ptr, gate_up_ptr, dgate_up_ptr, width, BLOCK: tl.constexpr):
    """Gradients of gate and up, with silu computed again."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    offsets = row * 2 * width + columns
    gate = tl.load(gate_up_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + offsets + width, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    dgate = dy * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(dgate_up_ptr + offsets, dgate, mask=inside)
    tl.store(dgate_up_ptr + offsets + width, dy * gate * sigmoid, mask=inside)


def swiglu_forward(gate_up: torch.Tensor) -> torch.Tensor:
    """See the schema of this name."""
    width = gate_up.shape[-1] // 2
    y = gate_up.new_empty((*gate_up.shape[:-1], width))
    launch(forward_kernel, _grid(y), gate_up, y, width, BLOCK=BLOCK)
    return y


def swiglu_backward(dy: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """See the schema of this name."""
    dgate_up = torch.empty_like(gate_up)
    launch(backward_kernel, _grid(dy), dy, gate_up, dgate_up, dy.shape[-1], BLOCK=BLOCK)
    return dgate_up


def _grid(y: torch.Tensor) -> tuple[int, int]:
    width = y.shape[-1]
    return y.numel() // max(1, width), triton.cdiv(width, BLOCK)


register(swiglu_forward=swiglu_forward, swiglu_backward=swiglu_backward)
