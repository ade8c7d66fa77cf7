"""Python face of the fused kernels: one file per op, reference and dispatch side by side.

Every op takes `backend`, which decides between compiled, Triton and reference (`native.py`);
`bind(backend)` binds it once for all.
"""

from megatron_chimed.kernels.adamw import AdamWStep, adamw_
from megatron_chimed.kernels.attention import causal_attention
from megatron_chimed.kernels.binding import AUTO, Kernels, OpPath, bind, describe
from megatron_chimed.kernels.cached_attention import CacheIndices, cached_attention
from megatron_chimed.kernels.cross_entropy import (
    IGNORED,
    VocabShard,
    linear_cross_entropy,
    vocab_parallel_cross_entropy,
)
from megatron_chimed.kernels.fused_adam import FusedAdam
from megatron_chimed.kernels.invariant_linear import invariant_linear
from megatron_chimed.kernels.l2_norm import l2_norm
from megatron_chimed.kernels.linear import linear
from megatron_chimed.kernels.rms_norm import add_rms_norm, rms_norm
from megatron_chimed.kernels.rope import rope, rope_frequencies
from megatron_chimed.kernels.sdpa import capability, chosen_backend, sdpa
from megatron_chimed.kernels.softmax import register_megatron_modules, scaled_masked_softmax
from megatron_chimed.kernels.swiglu import swiglu
from megatron_chimed.kernels.wgrad import (
    accumulate_weight_gradient,
    wgrad_gemm_accum_fp16,
    wgrad_gemm_accum_fp32,
)

__all__ = [
    "AUTO",
    "IGNORED",
    "AdamWStep",
    "CacheIndices",
    "FusedAdam",
    "Kernels",
    "OpPath",
    "VocabShard",
    "accumulate_weight_gradient",
    "add_rms_norm",
    "adamw_",
    "bind",
    "cached_attention",
    "capability",
    "causal_attention",
    "chosen_backend",
    "describe",
    "l2_norm",
    "linear",
    "linear_cross_entropy",
    "register_megatron_modules",
    "rms_norm",
    "rope",
    "rope_frequencies",
    "scaled_masked_softmax",
    "sdpa",
    "swiglu",
    "invariant_linear",
    "vocab_parallel_cross_entropy",
    "wgrad_gemm_accum_fp16",
    "wgrad_gemm_accum_fp32",
]
