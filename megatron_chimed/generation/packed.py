"""One number per sequence from packed forward passes: sequences end to end, without padding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megatron_chimed.data.datasets.native import pack
from megatron_chimed.engine import relay_forward
from megatron_chimed.errors import ConfigError
from megatron_chimed.generation.session import Session


@dataclass(frozen=True, kw_only=True)
class Pack:
    """The sequences of one forward pass, s tokens in total."""

    tokens: torch.Tensor
    """int64 [1, s]."""
    positions: torch.Tensor
    """int64 [1, s], from 0 in each sequence."""
    segment_ids: torch.Tensor
    """int64 [1, s], index of the sequence in the pack."""
    ends: torch.Tensor
    """int64 [n], index of each sequence's last token."""
    labels: torch.Tensor | None
    """int64 [1, s]."""


def measure_packed(
    session: Session,
    sequences: Sequence[np.ndarray],
    measure: Callable[[torch.Tensor, Pack], torch.Tensor],
    *,
    batch_tokens: int,
    labels: Sequence[np.ndarray] | None = None,
) -> list[float]:
    """Runs the model over sequences; every rank calls it with the same arguments.

    Packs are distributed over replicas; within a replica all ranks run each pack together.

    Args:
        session: The model.
        sequences: Ids `[n]` each, at least one.
        measure: Computes the numbers `[n]` of a pack from the output of the model's last chunk.
        batch_tokens: Tokens in a forward pass, unless a sequence is longer; changes speed and
            memory only.
        labels: Ids `[n]` each, passed to the model as labels; None for none.

    Returns:
        The numbers in order, the same on every rank; they may not be finite.

    Raises:
        ConfigError: `batch_tokens` is below 1.
    """
    if batch_tokens < 1:
        raise ConfigError(f"batch_tokens is {batch_tokens}: it counts tokens. Set 1 or more.")
    if not len(sequences):
        return []
    lengths = np.array([len(ids) for ids in sequences], np.int32)
    items, starts = pack(lengths, max(batch_tokens, int(lengths.max())))
    ranks = session.ranks
    found: dict[int, float] = {}
    for index in range(ranks.data_rank, len(starts) - 1, ranks.layout.data_parallel_size):
        members = items[starts[index] : starts[index + 1]].tolist()
        packed = _pack(
            [sequences[member] for member in members],
            None if labels is None else [labels[member] for member in members],
            ranks.device,
        )
        output = _run(session, packed)
        if output is not None:  # on the last pipeline stage
            found.update(zip(members, measure(output, packed).tolist(), strict=True))
    sent = [*found.items()] if ranks.tensor_rank == 0 else []
    answers = ranks.agreement.on_all_ranks(lambda: sent)
    ordered = {index: number for answer in answers for index, number in answer}
    return [ordered[index] for index in range(len(sequences))]


def _pack(
    sequences: Sequence[np.ndarray], labels: Sequence[np.ndarray] | None, device: torch.device
) -> Pack:
    lengths = torch.tensor([len(ids) for ids in sequences])
    ends = lengths.cumsum(0)
    begins = torch.repeat_interleave(ends - lengths, lengths)
    return Pack(
        tokens=_row(sequences, device),
        positions=(torch.arange(len(begins)) - begins).unsqueeze(0).to(device),
        segment_ids=torch.repeat_interleave(lengths).unsqueeze(0).to(device),
        ends=(ends - 1).to(device),
        labels=None if labels is None else _row(labels, device),
    )


def _row(parts: Sequence[np.ndarray], device: torch.device) -> torch.Tensor:
    """Concatenated, int64 [1, s]."""
    return torch.from_numpy(np.concatenate(parts).astype(np.int64)).unsqueeze(0).to(device)


def _run(session: Session, packed: Pack) -> torch.Tensor | None:
    return relay_forward(
        session.chunks,
        lambda chunk: chunk(
            packed.tokens,
            packed.positions,
            segment_ids=packed.segment_ids,
            labels=packed.labels,
        ),
        shape=(packed.tokens.shape[1], 1, session.config.hidden_size),
        dtype=session.settings.params_dtype,
        ranks=session.ranks,
    )
