"""Cross-entropy over a shard of the vocabulary in Triton.

Statistics: one program for a row, in one pass. Gradient: a program for `BLOCK` columns of a row.
"""

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from megatron_chimed.kernels.triton_ops.launch import launch, register

BLOCK = 4096


@triton.jit(do_not_specialize=["vocab_start"])
def stats_kernel(
    logits_ptr,
    target_ptr,
    max_ptr,
    sum_ptr,
    target_logit_ptr,
    width,
    live,
    vocab_start,
    BLOCK: tl.constexpr,
):
    """Maximum, sum(exp(x - maximum)) and target logit of the first `live` columns of a row.

    Source: Milakov and Gimelshein (arXiv 1805.02867), algorithm 3, by blocks.
    """
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * width
    maximum = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), dtype=tl.float32)
    for start in range(0, live, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + columns, mask=columns < live, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(maximum, tl.max(x, axis=0))
        # Nothing but -inf so far: any finite shift gives a sum of 0, and inf - inf would give NaN.
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        total = total * tl.exp(maximum - shift) + tl.sum(tl.exp(x - shift), axis=0)
        maximum = larger
    column = tl.load(target_ptr + row) - vocab_start
    is_local = (column >= 0) & (column < live)
    target_logit = tl.load(logits_ptr + column, mask=is_local, other=0.0).to(tl.float32)
    tl.store(max_ptr + row, maximum)
    tl.store(sum_ptr + row, total)
    tl.store(target_logit_ptr + row, target_logit)


@triton.jit(do_not_specialize=["vocab_start"])
def backward_kernel(
    logits_ptr,
    target_ptr,
    log_sum_exp_ptr,
    grad_ptr,
    width,
    live,
    vocab_start,
    z_loss,
    BLOCK: tl.constexpr,
):
    """Overwrites logits with their gradient; that of padding and of ignored tokens is 0."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    grad = tl.load(grad_ptr + row)
    log_sum_exp = tl.load(log_sum_exp_ptr + row)
    column = tl.load(target_ptr + row) - vocab_start
    # The logits of padding and of ignored tokens are not even read.
    counts = columns < tl.where(grad != 0.0, live, 0)
    x_ptrs = logits_ptr + row * width + columns
    x = tl.load(x_ptrs, mask=counts, other=float("-inf")).to(tl.float32)
    gradient = tl.exp(x - log_sum_exp) * (1.0 + 2.0 * z_loss * log_sum_exp)
    gradient = tl.where(columns == column, gradient - 1.0, gradient) * grad
    tl.store(x_ptrs, tl.where(counts, gradient, 0.0), mask=columns < width)


def cross_entropy_stats(
    logits: torch.Tensor, target: torch.Tensor, vocab_start: int, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See the schema of this name."""
    rows, width = logits.shape
    maximum, total, target_logit = (logits.new_empty(rows, dtype=torch.float32) for _ in range(3))
    launch(
        stats_kernel,
        (rows,),
        *(logits, target, maximum, total, target_logit),
        *(width, _live(width, vocab_start, vocab_size), vocab_start),
        BLOCK=BLOCK,
        num_warps=8,
    )
    return maximum, total, target_logit


def cross_entropy_backward_(
    logits: torch.Tensor,
    target: torch.Tensor,
    log_sum_exp: torch.Tensor,
    grad: torch.Tensor,
    vocab_start: int,
    vocab_size: int,
    z_loss: float,
) -> None:
    """See the schema of this name."""
    rows, width = logits.shape
    launch(
        backward_kernel,
        (rows, triton.cdiv(width, BLOCK)),
        *(logits, target, log_sum_exp, grad),
        *(width, _live(width, vocab_start, vocab_size), vocab_start, z_loss),
        BLOCK=BLOCK,
        num_warps=8,
    )


def _live(width: int, vocab_start: int, vocab_size: int) -> int:
    """Columns that are no padding."""
    return min(max(vocab_size - vocab_start, 0), width)


register(cross_entropy_stats=cross_entropy_stats, cross_entropy_backward_=cross_entropy_backward_)
