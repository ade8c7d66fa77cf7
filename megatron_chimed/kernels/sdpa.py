"""torch's attention, with its back end chosen here on CUDA: cuDNN or FLASH, not what is left over.

torch tries its back ends in an order that changed between its versions, and takes the mathematical
one if no other fits: that keeps all s^2 scores of every head, in silence.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron_chimed.errors import KernelError

CUDNN, FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
EFFICIENT, MATH = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
HOPPER = (9, 0)


def sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
) -> torch.Tensor:
    """softmax(q k' / sqrt(d)) v by torch's fused attention.

    Args:
        query: [b, n, s, d].
        key: [b, k, keys, d], k a divisor of n.
        value: [b, k, keys, d].
        mask: True where visible, broadcast to [b, n, s, keys].
        dropout: Probability of dropping an attention weight.
        is_causal: A query sees its own and earlier tokens; not together with a mask.

    Raises:
        KernelError: On CUDA, no back end that we allow takes the arguments.
    """
    chosen: contextlib.AbstractContextManager = contextlib.nullcontext()
    if query.is_cuda:
        allowed = _enabled(query, masked=mask is not None)
        chosen = sdpa_kernel(allowed, set_priority=True)
    try:
        with chosen:
            return F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=is_causal,
                enable_gqa=query.shape[1] != key.shape[1],
            )
    except RuntimeError as error:
        if "No available kernel" not in str(error):
            raise
        raise KernelError(
            f"attention: none of torch's fused back ends takes queries {list(query.shape)} and "
            f"keys {list(key.shape)} of {query.dtype} on this GPU. Set --model.attention_backend "
            "reference, which keeps all scores in memory."
        ) from error


def allowed_backends(
    dtype: torch.dtype, compute_capability: tuple[int, int], *, masked: bool
) -> list[SDPBackend]:
    """The back ends in order of preference.

    Only the slower two take a dense mask, and only they compute in fp32. Otherwise MATH is left
    out: it would need 4 n s^2 bytes for each layer and sample.
    """
    if masked or dtype == torch.float32:
        return [EFFICIENT, MATH]
    fast = [CUDNN, FLASH] if compute_capability >= HOPPER else [FLASH, CUDNN]
    return [*fast, EFFICIENT]


def _enabled(query: torch.Tensor, *, masked: bool) -> list[SDPBackend]:
    """`allowed_backends` without those that were switched off in torch, unless all were."""
    allowed = allowed_backends(query.dtype, capability(query.device), masked=masked)
    switches = torch.backends.cuda
    is_on = {
        CUDNN: switches.cudnn_sdp_enabled(),
        FLASH: switches.flash_sdp_enabled(),
        EFFICIENT: switches.mem_efficient_sdp_enabled(),
        MATH: switches.math_sdp_enabled(),
    }
    return [backend for backend in allowed if is_on[backend]] or allowed


def chosen_backend(query: torch.Tensor, key: torch.Tensor) -> str:
    """Name of the back end that causal attention takes on CUDA, such as `CUDNN`; '' for none.

    Args:
        query: [b, n, s, d]; only its shape, type and device matter.
        key: [b, k, s, d].
    """
    enable_gqa = query.shape[1] != key.shape[1]
    call = torch.backends.cuda.SDPAParams(query, key, key, None, 0.0, True, enable_gqa)
    takes = {
        CUDNN: torch.backends.cuda.can_use_cudnn_attention,
        FLASH: torch.backends.cuda.can_use_flash_attention,
        EFFICIENT: torch.backends.cuda.can_use_efficient_attention,
        MATH: lambda _: True,
    }
    allowed = _enabled(query, masked=False)
    names = (backend.name for backend in allowed if takes[backend](call))
    return next(names, "").removesuffix("_ATTENTION")


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability; that of Hopper for the fake CUDA tensors of a machine without CUDA."""
    return torch.cuda.get_device_capability(device) if torch.cuda.is_available() else HOPPER
