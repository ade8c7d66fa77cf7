"""Cross-entropy over a vocabulary that may be split over tensor-parallel ranks.

One pass over the logits gives each token's maximum and sum of exponentials; ranks exchange only
these per-token numbers. Backward overwrites the logits with their gradient, so no second tensor of
that size exists, and the logits must not be read after it.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels.checks import check_float, check_ids, check_like, check_shape
from megatron_chimed.kernels.native import FusedOp, implementation
from megatron_chimed.kernels.schemas import define, row_statistics
from megatron_chimed.kernels.wgrad import accumulate_weight_gradient

CROSS_ENTROPY = FusedOp(
    name="cross_entropy", kernel="cross_entropy_backward_", triton="cross_entropy"
)

define(
    "cross_entropy_stats(Tensor logits, Tensor target, int vocab_start, int vocab_size)"
    " -> (Tensor max, Tensor sum, Tensor target_logit)",
    lambda logits, *_: tuple(row_statistics(logits) for _ in range(3)),
    triton=True,
)
define(
    "cross_entropy_backward_(Tensor(a!) logits, Tensor target, Tensor log_sum_exp, Tensor grad,"
    " int vocab_start, int vocab_size, float z_loss) -> ()",
    lambda *_: None,
    triton=True,
)

IGNORED = -100
"""A target that is excluded from the loss; torch's convention."""


@dataclass(frozen=True, kw_only=True)
class VocabShard:
    """The shard of the vocabulary whose logits a rank holds."""

    size: int
    """True size of the whole vocabulary, in ids; logits of ids from here on are padding."""

    start: int = 0
    """Id of the first local column."""

    group: dist.ProcessGroup | None = None
    """The ranks that hold the other shards; None: there are none."""


def vocab_parallel_cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    shard: VocabShard,
    z_loss: float = 0.0,
    backend: str = "auto",
) -> torch.Tensor:
    """-log softmax(logits)[target] + z_loss * log(sum(exp(logits)))^2 for each token, in fp32.

    On a CUDA device a target out of range gives a loss of NaN: looking at the ids would wait for
    the device.

    Args:
        logits: [T, v/t]; its memory holds the gradient after the fused backward.
        target: [T] int64 in [0, shard.size), or `IGNORED`: loss and gradient 0.
        shard: Which columns these are.
        z_loss: Weight of the squared log-sum-exp (arXiv 2204.02311, section 5).
        backend: See `native.implementation`.

    Returns:
        [T] fp32, the same on all ranks of the group.

    Raises:
        KernelError: An argument does not fit.

    Source: Megatron-LM (arXiv 1909.08053), section 3, for the split; Milakov and Gimelshein
    (arXiv 1805.02867), algorithm 3, for the single pass.
    """
    op = CROSS_ENTROPY.name
    check_float(op, logits=logits)
    if logits.dim() != 2:
        raise KernelError(f"{op}: logits have shape {list(logits.shape)}, expected [T, v/t].")
    check_shape(op, "target", target, (logits.shape[0],))
    _check_shard(op, target, shard)
    settings = _Settings(shard, z_loss, implementation(CROSS_ENTROPY, backend, logits))
    return _CrossEntropy.apply(logits, target, settings)


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    *,
    shard: VocabShard,
    z_loss: float = 0.0,
    chunk_tokens: int = 1024,
    backend: str = "auto",
) -> torch.Tensor:
    """Cross-entropy of hidden @ weight^T, whose logits exist for `chunk_tokens` tokens at a time.

    Backward forms each chunk's logits again: a fourth matrix product beside the usual three, in
    exchange for any weighting of the tokens and a forward that costs nothing extra without
    gradients. (Forming the gradient in forward instead needs to know the weighting.)

    Args:
        hidden: [T, h], equal on all ranks of the group. Its gradient is this rank's part: who made
            it equal on all ranks sums the gradient, as for any column-parallel layer.
        weight: [v/t, h], same dtype and device.
        target: [T], see `vocab_parallel_cross_entropy`.
        shard: Which rows of the vocabulary `weight` holds.
        z_loss: See `vocab_parallel_cross_entropy`.
        chunk_tokens: Tokens per chunk; logits take chunk_tokens * v/t elements.
        backend: See `native.implementation`.

    Returns:
        [T] fp32.

    Raises:
        KernelError: An argument does not fit.
    """
    op = CROSS_ENTROPY.name
    check_float(op, hidden=hidden)
    if hidden.dim() != 2 or weight.dim() != 2:
        raise KernelError(
            f"{op}: hidden has shape {list(hidden.shape)} and weight {list(weight.shape)}, "
            "expected [T, h] and [v/t, h]."
        )
    check_shape(op, "weight", weight, (weight.shape[0], hidden.shape[1]))
    check_like(op, "hidden", hidden, weight=weight)
    check_shape(op, "target", target, (hidden.shape[0],))
    _check_shard(op, target, shard)
    if chunk_tokens < 1:
        raise KernelError(f"{op}: chunk_tokens is {chunk_tokens}, expected at least 1.")
    settings = _Settings(shard, z_loss, implementation(CROSS_ENTROPY, backend, hidden))
    return _LinearCrossEntropy.apply(hidden, weight, target, settings, chunk_tokens)


def _check_shard(op: str, target: torch.Tensor, shard: VocabShard) -> None:
    check_ids(op, "target", target, size=shard.size, ignored=IGNORED)
    if shard.start < 0 or shard.size < 1:
        raise KernelError(
            f"{op}: shard starts at {shard.start} of {shard.size} ids, expected a start >= 0 and "
            "a size >= 1."
        )


class _Settings(NamedTuple):
    shard: VocabShard
    z_loss: float
    ops: Any
    """What `implementation` returns."""


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, settings):
        logits, target = logits.contiguous(), target.contiguous()
        loss, log_sum_exp = _forward(logits, target, settings)
        ctx.save_for_backward(logits, target, log_sum_exp)
        ctx.settings = settings
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dloss):
        logits, target, log_sum_exp = ctx.saved_tensors
        gradient = _backward(logits, target, log_sum_exp, dloss, ctx.settings)
        return gradient, None, None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, target, settings, chunk_tokens):
        target = target.contiguous()
        chunks = zip(hidden.split(chunk_tokens), target.split(chunk_tokens), strict=True)
        results = [_forward(h @ weight.t(), t, settings) for h, t in chunks]
        loss, log_sum_exp = (torch.cat(column) for column in zip(*results, strict=True))
        ctx.save_for_backward(hidden, weight, target, log_sum_exp)
        ctx.settings, ctx.chunk_tokens = settings, chunk_tokens
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dloss):
        hidden, weight, target, log_sum_exp = ctx.saved_tensors
        dhidden = torch.empty_like(hidden)
        # Summed over the chunks in fp32: bf16 would lose small chunks. A frozen weight has none.
        is_trained = ctx.needs_input_grad[1]
        dweight = torch.zeros_like(weight, dtype=_wide_dtype(weight)) if is_trained else None
        tensors = (hidden, target, log_sum_exp, dloss, dhidden)
        for h, t, lse, g, dh in zip(*(x.split(ctx.chunk_tokens) for x in tensors), strict=True):
            dlogits = _backward(h @ weight.t(), t, lse, g, ctx.settings)
            torch.mm(dlogits, weight, out=dh)
            if dweight is not None:
                accumulate_weight_gradient(h, dlogits, dweight)
        dweight = None if dweight is None else dweight.to(weight.dtype)
        return dhidden, dweight, None, None, None


def _forward(logits, target, settings):
    """Loss and log-sum-exp of each token, [T] each, reduced over the group."""
    shard, z_loss, ops = settings
    stats = cross_entropy_stats_reference if ops is None else ops.cross_entropy_stats
    maximum, total, target_logit = stats(logits, target, shard.start, shard.size)
    if shard.group is not None and dist.get_world_size(shard.group) > 1:
        local_maximum = maximum.clone()
        dist.all_reduce(maximum, op=dist.ReduceOp.MAX, group=shard.group)
        total = total * (local_maximum - maximum).exp()
        sums = torch.stack((total, target_logit))  # [2, T]: one collective for both
        dist.all_reduce(sums, group=shard.group)
        total, target_logit = sums
    log_total = total.log()
    log_sum_exp = maximum + log_total
    # Not log_sum_exp - target_logit: large logits would leave few digits of the difference.
    loss = log_total + (maximum - target_logit) + z_loss * log_sum_exp.square()
    out_of_range = (target < 0) | (target >= shard.size)
    loss = loss.masked_fill(out_of_range, torch.nan)
    return loss.masked_fill(target == IGNORED, 0.0), log_sum_exp


def _backward(logits, target, log_sum_exp, dloss, settings):
    """The gradient of the logits; in their memory if fused."""
    shard, z_loss, ops = settings
    dloss = dloss.masked_fill(target == IGNORED, 0.0).to(log_sum_exp.dtype)
    if ops is None:
        return _gradient_reference(logits, target, log_sum_exp, dloss, settings)
    ops.cross_entropy_backward_(
        logits, target, log_sum_exp, dloss.contiguous(), shard.start, shard.size, z_loss
    )
    return logits


def cross_entropy_stats_reference(
    logits: torch.Tensor, target: torch.Tensor, vocab_start: int, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the kernel computes, in plain torch; double stays double.

    Returns:
        Of the columns that are no padding: maximum, sum(exp(x - maximum)), and the target's logit
        (0 where it is not here); [T] each.
    """
    wide = _live_columns(logits, vocab_start, vocab_size).to(_wide_dtype(logits))
    if not wide.shape[1]:
        nothing = wide.new_zeros(wide.shape[0])
        return nothing - torch.inf, nothing, nothing
    maximum = wide.amax(dim=1)
    total = (wide - maximum.unsqueeze(1)).exp().sum(dim=1)
    column, is_local = _local_column(target, vocab_start, wide.shape[1])
    target_logit = wide.gather(1, column.unsqueeze(1)).squeeze(1).masked_fill(~is_local, 0.0)
    return maximum, total, target_logit


def _gradient_reference(logits, target, log_sum_exp, dloss, settings):
    shard, z_loss, _ = settings
    live = _live_columns(logits, shard.start, shard.size)
    gradient = (live.to(log_sum_exp.dtype) - log_sum_exp.unsqueeze(1)).exp()
    gradient = gradient * (1.0 + 2.0 * z_loss * log_sum_exp).unsqueeze(1)
    if live.shape[1]:
        column, is_local = _local_column(target, shard.start, live.shape[1])
        gradient.scatter_add_(1, column.unsqueeze(1), -is_local.to(gradient.dtype).unsqueeze(1))
    gradient = gradient * dloss.unsqueeze(1)
    gradient = gradient.masked_fill((dloss == 0).unsqueeze(1), 0.0)  # not even inf * 0
    padding = logits.shape[1] - live.shape[1]
    return torch.nn.functional.pad(gradient, (0, padding)).to(logits.dtype)


def _live_columns(logits, vocab_start, vocab_size):
    return logits[:, : min(max(vocab_size - vocab_start, 0), logits.shape[1])]


def _local_column(target, vocab_start, width):
    column = target - vocab_start
    is_local = (column >= 0) & (column < width)
    return column.masked_fill(~is_local, 0), is_local


def _wide_dtype(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32
