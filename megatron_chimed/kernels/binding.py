"""The ops, bound to one backend; chosen once for a run and passed to their callers."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from megatron_chimed.kernels.adamw import adamw_
from megatron_chimed.kernels.attention import causal_attention
from megatron_chimed.kernels.cached_attention import cached_attention
from megatron_chimed.kernels.cross_entropy import linear_cross_entropy, vocab_parallel_cross_entropy
from megatron_chimed.kernels.invariant_linear import invariant_linear
from megatron_chimed.kernels.l2_norm import l2_norm
from megatron_chimed.kernels.rms_norm import add_rms_norm, rms_norm
from megatron_chimed.kernels.rope import rope
from megatron_chimed.kernels.softmax import scaled_masked_softmax
from megatron_chimed.kernels.swiglu import swiglu


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """The ops, bound to one backend; each field is the function of its name."""

    rms_norm: Callable
    add_rms_norm: Callable
    swiglu: Callable
    rope: Callable
    causal_attention: Callable
    vocab_parallel_cross_entropy: Callable
    linear_cross_entropy: Callable
    scaled_masked_softmax: Callable
    adamw_: Callable
    l2_norm: Callable
    cached_attention: Callable
    invariant_linear: Callable


def bind(backend: str) -> Kernels:
    """The ops with one backend: `auto`, `fused` or `reference`."""
    functions = (
        rms_norm,
        add_rms_norm,
        swiglu,
        rope,
        causal_attention,
        vocab_parallel_cross_entropy,
        linear_cross_entropy,
        scaled_masked_softmax,
        adamw_,
        l2_norm,
        cached_attention,
        invariant_linear,
    )
    bound = {f.__name__: functools.partial(f, backend=backend) for f in functions}
    return Kernels(**bound)


AUTO = bind("auto")
"""Fused kernels where there are any."""
