"""Compares transformers' logits or scores of a checkpoint with ours.

The two models are in memory one after the other, in fp32: 4 bytes per parameter, plus one layer of
transformers' model in float64.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator

import torch

from megatron_chimed import engine
from megatron_chimed.checkpoint.load import stored_model_config
from megatron_chimed.checkpoint.reader import CheckpointReader
from megatron_chimed.conversion.hf_reference import reference_logits
from megatron_chimed.errors import CheckpointError
from megatron_chimed.model import LoraConfig, Transformer, build_chunks, weight_shards

TOLERANCE = 5.0
"""Correct conversions measured 0.7 to 1.4, with 1 to 40 layers and logits up to 150; wrong ones, in
`tests/integration/test_verify_logits.py`, 99 and more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitAgreement:
    """Errors of two sets of logits, or of scores, against float64."""

    our_error: float
    """Largest absolute difference of ours."""
    their_error: float
    """Largest absolute difference of transformers' own fp32 result: the effect of rounding."""
    max_logit: float
    """Largest absolute logit, for scale."""
    num_positions: int
    """Positions compared, each over the whole vocabulary; for scores, rows."""
    kind: str
    """`logits` or `scores`."""


def verify_logits(
    our_logits: Callable[[torch.Tensor], torch.Tensor],
    hf_dir: str | os.PathLike,
    *,
    tolerance: float = TOLERANCE,
) -> LogitAgreement:
    """Compares our logits with those of transformers.

    Both are fp32, and the distance between two correct ones depends on the model: 1e-7 or 0.1. So
    both are compared with transformers' result in float64.

    Args:
        our_logits: Token ids [b, s] int64 -> logits [b, s, v] without vocabulary padding.
        hf_dir: A Hugging Face folder.
        tolerance: Largest allowed ratio of our error to transformers' own.

    Raises:
        CheckpointError: The ratio is larger, or not finite.
    """
    reference = reference_logits(hf_dir)
    ours = our_logits(reference.tokens).double()  # [b, s, v]
    if reference.kind == "scores":
        ours = ours[torch.arange(len(ours)), reference.ends]  # [b, 1]
    if ours.shape != reference.exact.shape:
        raise CheckpointError(
            f"our {reference.kind} are {tuple(ours.shape)}, those of transformers "
            f"{tuple(reference.exact.shape)}: vocabulary padding has leaked, or the configs differ."
        )
    agreement = LogitAgreement(
        our_error=(ours - reference.exact).abs().max().item(),
        their_error=reference.rounding,
        max_logit=reference.exact.abs().max().item(),
        num_positions=math.prod(ours.shape[:-1]),
        kind=reference.kind,
    )
    if not agreement.our_error <= tolerance * agreement.their_error:  # so that NaN does not pass
        raise CheckpointError(
            f"transformers' {reference.kind} of {hf_dir} in float64 (largest "
            f"{agreement.max_logit:.3g}) differ from ours by {agreement.our_error:.3g}, and from "
            f"its own in fp32 by {agreement.their_error:.3g}: more than {tolerance:g} times what "
            "rounding explains. Do not use this conversion; compare its config.json with the "
            "source's."
        )
    return agreement


def checkpoint_logits(
    reader: CheckpointReader, tokens: torch.Tensor, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Logits of a checkpoint by our model, in fp32 on this process alone; scores as one logit.

    Args:
        reader: An opened checkpoint.
        tokens: [b, s] int64.
        dtype: Round the weights to it first, as an export does; None leaves them.

    Returns:
        [b, s, v] fp32, without vocabulary padding; v is 1 for a reward model.
    """
    with one_rank_model(reader, seq_length=tokens.shape[1]) as (chunk, device):
        if dtype is not None:
            for shard in weight_shards([chunk]):
                shard.tensor.copy_(shard.tensor.to(dtype))
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        with torch.no_grad():
            output = chunk(tokens.to(device), positions.to(device))
    logits = output.unsqueeze(-1) if chunk.model_config.head == "score" else output
    return logits[..., : chunk.model_config.vocab_size].transpose(0, 1).float().cpu()  # [b, s, v]


@contextlib.contextmanager
def one_rank_model(
    reader: CheckpointReader, *, seq_length: int, lora: LoraConfig | None = None
) -> Iterator[tuple[Transformer, torch.device]]:
    """The whole model of a checkpoint in fp32 and evaluation mode, in this process alone.

    Args:
        reader: An opened checkpoint.
        seq_length: Longest sample, in tokens.
        lora: Adapters that the checkpoint holds; None without adapters.
    """
    model = stored_model_config(reader)
    layout = engine.plan_layout(
        engine.ParallelConfig(), world_size=1, sizes=model.sizes(seq_length)
    )
    ranks = engine.join(layout, rank=0, local_rank=0)
    try:
        settings = engine.engine_settings(layout, hidden_size=model.hidden_size, precision="fp32")
        (chunk,) = build_chunks(
            model, settings=settings, ranks=ranks, lora=LoraConfig() if lora is None else lora
        )
        for shard in weight_shards([chunk]):
            # Not `load_checkpoint`: that prefers master weights, which are not what is exported.
            reader.read_region(shard.key, shard.offset, shard.tensor)
        yield chunk.eval(), ranks.device
    finally:
        engine.leave()
