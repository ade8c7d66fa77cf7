"""Shapes and dtypes of the ops' outputs without computing them.

Fake tensors (planning a run without its memory) and torch.compile need them.
"""

import torch


def register_fakes() -> None:
    """Registers a fake for every op of the loaded library; called once, after loading it."""
    for name, fake in FAKES.items():
        torch.library.register_fake(f"chimed::{name}", fake)


def _rows(x):
    return x.new_empty((x.numel() // max(1, x.shape[-1]),), dtype=torch.float32)


def _rms_norm_forward(x, weight, eps):
    return torch.empty_like(x), _rows(x)


def _rms_norm_backward(dy, x, weight, rstd):
    return torch.empty_like(x), torch.empty_like(weight)


def _add_rms_norm_forward(x, residual, weight, eps):
    return torch.empty_like(x), torch.empty_like(x), _rows(x)


def _add_rms_norm_backward(dy, dsummed, summed, weight, rstd):
    return torch.empty_like(summed), torch.empty_like(weight)


def _swiglu_forward(gate_up):
    return gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))


def _swiglu_backward(dy, gate_up):
    return torch.empty_like(gate_up)


def _rope(q, k, cos, sin, inverse):
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _cross_entropy_stats(logits, target, vocab_start, vocab_size):
    return _rows(logits), _rows(logits), _rows(logits)


def _cross_entropy_backward(logits, target, log_sum_exp, grad, vocab_start, vocab_size, z_loss):  # noqa: PLR0913
    return None


def _softmax_forward(x, mask, scale, causal):
    return torch.empty_like(x)


def _softmax_backward(dy, y, scale):
    return torch.empty_like(y)


def _adamw(*lists_and_settings):
    return None


def _l2_norm(tensors):
    return tensors[0].new_empty((), dtype=torch.float32)


def _cached_attention(query, key, value, keys, values, slots, positions):  # noqa: PLR0913
    return query.new_empty(query.shape)


def _invariant_linear(x, weight):
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


FAKES = {
    "rms_norm_forward": _rms_norm_forward,
    "rms_norm_backward": _rms_norm_backward,
    "add_rms_norm_forward": _add_rms_norm_forward,
    "add_rms_norm_backward": _add_rms_norm_backward,
    "swiglu_forward": _swiglu_forward,
    "swiglu_backward": _swiglu_backward,
    "rope": _rope,
    "cross_entropy_stats": _cross_entropy_stats,
    "cross_entropy_backward_": _cross_entropy_backward,
    "scaled_masked_softmax_forward": _softmax_forward,
    "scaled_masked_softmax_backward": _softmax_backward,
    "adamw_": _adamw,
    "l2_norm": _l2_norm,
    "cached_attention": _cached_attention,
    "invariant_linear": _invariant_linear,
}
