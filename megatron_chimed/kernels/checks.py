"""Checks of the arguments of ops.

A message names the op and the argument, then what is expected and what was given.
"""

import torch
from torch._subclasses.fake_tensor import FakeTensor

from megatron_chimed.errors import KernelError

FUSED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# The references also take double, which gradcheck needs.
DTYPES = (*FUSED_DTYPES, torch.float64)


def check_float(op: str, **tensors: torch.Tensor) -> None:
    """Refuses other dtypes than fp32, fp16, bf16 and (reference only) fp64."""
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise KernelError(
                f"{op}: {name} is {tensor.dtype}, but the op computes on float32, float16 or "
                f"bfloat16. Convert {name} first."
            )


def check_like(op: str, reference_name: str, reference: torch.Tensor, **tensors) -> None:
    """Refuses tensors of another dtype or device than `reference` (sizes are not compared)."""
    for name, tensor in tensors.items():
        if tensor.dtype == reference.dtype and tensor.device == reference.device:
            continue
        for what in ("dtype", "device"):
            expected, given = getattr(reference, what), getattr(tensor, what)
            if expected != given:
                raise KernelError(
                    f"{op}: {name} has {what} {given}, but {reference_name} has {expected}: both "
                    f"must be the same. Convert one of them with .to()."
                )


def check_shape(op: str, name: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
    """Refuses any other shape than `expected`."""
    if tuple(tensor.shape) != tuple(expected):
        raise KernelError(
            f"{op}: {name} has shape {list(tensor.shape)}, expected {list(expected)}."
        )


def has_values(tensor: torch.Tensor) -> bool:
    """Whether reading a tensor's values is possible and cheap.

    On CUDA it would wait for the device; in a fake world or under torch.compile there are none.
    """
    is_plain = not isinstance(tensor, FakeTensor) and not torch.compiler.is_compiling()
    return tensor.device.type == "cpu" and is_plain


def check_ids(op: str, name: str, ids: torch.Tensor, *, size: int, ignored: int) -> None:
    """Refuses ids that are neither in [0, size) nor `ignored`, where reading them is cheap."""
    if ids.dtype != torch.int64:
        raise KernelError(f"{op}: {name} is {ids.dtype}, expected torch.int64.")
    if not has_values(ids):
        return
    wrong = ((ids < 0) | (ids >= size)) & (ids != ignored)
    if wrong.any():
        position = int(wrong.int().argmax())
        raise KernelError(
            f"{op}: {name}[{position}] is {int(ids[position])}, expected an id in [0, {size}) or "
            f"{ignored} (ignored)."
        )
