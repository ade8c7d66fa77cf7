"""Other projects' kernels for benchmarks/kernels.py: megatron-core's local paths, and Liger.

megatron-core's are the ones it uses without TransformerEngine; what it calls fused is compiled by
torch at the first call. Its RMSNorm is torch's, its softmax the eager formula. Liger runs on
CUDA only and is measured where it is installed; that part has not run yet.
"""

import functools
import importlib.util
from collections.abc import Callable

import torch
import torch.distributed as dist

from megatron_chimed import engine  # noqa: F401  (prepares megatron-core before its import)

LOCAL = "megatron-core"
LIGER = "Liger"


def rms_norm(device: str, eps: float) -> dict[str, Callable]:
    """Inputs (x, weight)."""
    if not _has_liger(device):
        return {}
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return {LIGER: lambda x, w: LigerRMSNormFunction.apply(x, w, eps)}


def swiglu(device: str) -> dict[str, Callable]:
    """Inputs (gate and up side by side)."""
    from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl

    variants = {LOCAL: lambda gate_up: bias_swiglu_impl(gate_up, None)}
    if _has_liger(device):
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        variants[LIGER] = lambda gate_up: LigerSiLUMulFunction.apply(*gate_up.chunk(2, dim=-1))
    return variants


def rope(angles: torch.Tensor) -> dict[str, Callable]:
    """Inputs (q, k), [T, n, d] each.

    Args:
        angles: [T, d], those of both halves.
    """
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

    freqs = angles[:, None, None]  # [s, 1, 1, d]

    def local(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, ...]:
        turned = (_apply_rotary_pos_emb_bshd(x.unsqueeze(1), freqs) for x in (q, k))
        return tuple(x.squeeze(1) for x in turned)

    return {LOCAL: local}


def cross_entropy(device: str, target: torch.Tensor) -> dict[str, Callable]:
    """Inputs (logits [T, v])."""
    from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy

    group = _alone(device)

    def local(logits: torch.Tensor) -> torch.Tensor:
        # It overwrites the logits, in forward already: what it is given here is their fp32 copy,
        # which it makes of half precision anyway.
        wide = logits.unsqueeze(1).float() if logits.dtype != torch.float32 else logits[:, None] + 0
        return fused_vocab_parallel_cross_entropy(wide, target.unsqueeze(1), group).squeeze(1)

    variants = {LOCAL: local}
    if _has_liger(device):
        from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction

        rest = (None, -100, 0.0, 0.0, "none")
        variants[LIGER] = lambda logits: LigerCrossEntropyFunction.apply(logits, target, *rest)[0]
    return variants


@functools.cache
def _alone(device: str) -> dist.ProcessGroup:
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return dist.group.WORLD


def close() -> None:
    """Destroys the process group that megatron-core's cross-entropy needs."""
    if dist.is_initialized():
        dist.destroy_process_group()
    _alone.cache_clear()


def _has_liger(device: str) -> bool:
    return device == "cuda" and importlib.util.find_spec("liger_kernel") is not None
