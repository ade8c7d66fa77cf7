"""Whether transformers computes what we compute: logits or scores of one checkpoint, by both.

The two models are in memory one after the other, in fp32: 4 bytes a parameter.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from megatron_chimed import engine
from megatron_chimed.checkpoint.load import stored_model_config
from megatron_chimed.checkpoint.reader import CheckpointReader
from megatron_chimed.errors import CheckpointError
from megatron_chimed.model import LoraConfig, Ziya, build_chunks, weight_slices

TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitAgreement:
    """How far two sets of logits, or of scores, are apart."""

    max_difference: float
    """Largest absolute difference."""
    max_logit: float
    """Largest absolute logit of transformers, for scale."""
    num_positions: int
    """Positions compared, each over the whole vocabulary; rows, of scores."""
    kind: str
    """`logits` or `scores`."""


def verify_logits(
    our_logits: Callable[[torch.Tensor], torch.Tensor],
    hf_dir: str | os.PathLike,
    *,
    tolerance: float = TOLERANCE,
) -> LogitAgreement:
    """Compares our logits with those of `transformers.LlamaForCausalLM`, both in fp32.

    Args:
        our_logits: Token ids [b, s] int64 -> logits [b, s, v] without vocabulary padding.
        hf_dir: A Hugging Face folder.
        tolerance: Largest absolute difference that is let pass.

    Raises:
        CheckpointError: The logits differ by more, or are not finite.
    """
    from transformers import AutoConfig, LlamaForCausalLM, LlamaForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(os.fspath(hf_dir))
    is_scorer = config.architectures == ["LlamaForSequenceClassification"]
    kind = LlamaForSequenceClassification if is_scorer else LlamaForCausalLM
    reference = kind.from_pretrained(os.fspath(hf_dir), dtype=torch.float32)
    tokens, ends = _probe(reference.config)
    with torch.no_grad():
        theirs = reference(tokens).logits  # [b, s, v], or [b, 1] of a reward model
        del reference
        ours = our_logits(tokens).float()  # [b, s, v]
    if is_scorer:
        ours = ours[torch.arange(len(ends)), ends]  # [b, 1]
    what = "scores" if is_scorer else "logits"
    if ours.shape != theirs.shape:
        raise CheckpointError(
            f"our {what} are {tuple(ours.shape)}, those of transformers {tuple(theirs.shape)}: "
            "vocabulary padding has leaked, or the configs differ."
        )
    agreement = LogitAgreement(
        max_difference=(ours - theirs).abs().max().item(),
        max_logit=theirs.abs().max().item(),
        num_positions=len(ends) if is_scorer else tokens.numel(),
        kind=what,
    )
    if math.isnan(agreement.max_difference) or agreement.max_difference > tolerance:
        raise CheckpointError(
            f"transformers' {what} of {hf_dir} differ from ours by {agreement.max_difference:.3g} "
            f"(largest {agreement.max_logit:.3g}), more than the tolerance {tolerance:g}. Do "
            "not use this conversion; compare its config.json with the source's."
        )
    return agreement


def _probe(config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Random rows [b, s], and the last token [b] of each that is not padding.

    Some hundred positions: a wrong RoPE base is invisible at the first ones. Where there is
    padding, it takes up to half of a row: whoever reads the score at the wrong token is found out.
    """
    rows, length, pad = 2, min(config.max_position_embeddings, 256), config.pad_token_id
    if pad is None and config.architectures == ["LlamaForSequenceClassification"]:
        rows = 1  # transformers takes no more without padding
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (rows, length), generator=generator)
    ends = torch.full((rows,), length - 1)
    if pad is not None and config.architectures == ["LlamaForSequenceClassification"]:
        ends[1:] = length // 2
        tokens[torch.arange(rows), ends] = (pad + 1) % config.vocab_size
        for row, end in enumerate(ends.tolist()):
            tokens[row, end + 1 :] = pad
    return tokens, ends


def checkpoint_logits(
    reader: CheckpointReader, tokens: torch.Tensor, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Logits of a checkpoint by our model, in fp32 on this process alone; scores as one logit.

    Args:
        reader: An opened checkpoint.
        tokens: [b, s] int64.
        dtype: Weights are rounded to it first, as an export to it does; None leaves them.

    Returns:
        [b, s, v] fp32, without vocabulary padding; v is 1 for a reward model.
    """
    with one_rank_model(reader, seq_length=tokens.shape[1]) as (chunk, device):
        if dtype is not None:
            for held in weight_slices([chunk]):
                held.tensor.copy_(held.tensor.to(dtype))
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        with torch.no_grad():
            output = chunk(tokens.to(device), positions.to(device))
    logits = output.unsqueeze(-1) if chunk.model_config.head == "score" else output
    return logits[..., : chunk.model_config.vocab_size].transpose(0, 1).float().cpu()  # [b, s, v]


@contextlib.contextmanager
def one_rank_model(
    reader: CheckpointReader, *, seq_length: int, lora: LoraConfig | None = None
) -> Iterator[tuple[Ziya, torch.device]]:
    """The whole model of a checkpoint in fp32 and evaluation mode, in this process alone.

    Args:
        reader: An opened checkpoint.
        seq_length: Longest sample, in tokens.
        lora: With adapters beside the weights, as the checkpoint holds them; None: it has none.
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
        for held in weight_slices([chunk]):
            # Not `load_checkpoint`: that prefers main parameters, which are not what is exported.
            reader.read_box(held.key, held.offset, held.tensor)
        yield chunk.eval(), ranks.device
    finally:
        engine.leave()
