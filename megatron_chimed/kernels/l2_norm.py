"""One norm over many tensors, with a single wait for the device."""

from collections.abc import Sequence

import torch

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels.checks import check_float
from megatron_chimed.kernels.native import FusedOp, use_fused
from megatron_chimed.kernels.schemas import define

L2_NORM = FusedOp(name="l2_norm", kernel="l2_norm")

define(
    "l2_norm(Tensor[] tensors) -> Tensor",
    lambda tensors: tensors[0].new_empty((), dtype=torch.float32),
)


def l2_norm(tensors: Sequence[torch.Tensor], *, backend: str = "auto") -> torch.Tensor:
    """The square root of the sum of squares of all elements, on the device of the tensors.

    Nothing waits for the device: the caller's own `.item()` is the only synchronisation.

    Args:
        tensors: At least one; any shapes, one dtype each, one device.
        backend: See `native.implementation`.

    Returns:
        A scalar tensor, fp32.

    Raises:
        KernelError: The list is empty or a tensor does not fit.
    """
    if not tensors:
        raise KernelError("l2_norm: tensors is empty, expected at least one tensor.")
    for index, tensor in enumerate(tensors):
        check_float("l2_norm", **{f"tensors[{index}]": tensor})
        if tensor.device != tensors[0].device:
            raise KernelError(
                f"l2_norm: tensors[{index}] is on {tensor.device}, but tensors[0] on "
                f"{tensors[0].device}: call it once for each device."
            )
    odd = next((t for t in tensors if t.dtype == torch.float64), tensors[0])
    if not use_fused(L2_NORM, backend, odd):
        return l2_norm_reference(tensors)
    return torch.ops.chimed.l2_norm([tensor.detach().contiguous() for tensor in tensors])


def l2_norm_reference(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the kernel computes, in plain torch."""
    wide = [t.detach().double() if t.device.type == "cpu" else t.detach().float() for t in tensors]
    return torch.stack([t.square().sum() for t in wide]).sum().sqrt().float()
