"""One number for each of many sequences, without padding: laid end to end, each its own segment."""

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
    """Sequences in one forward pass, s tokens in all."""

    tokens: torch.Tensor
    """int64 [1, s]."""
    positions: torch.Tensor
    """int64 [1, s], from 0 in each sequence."""
    segment_ids: torch.Tensor
    """int64 [1, s], the number of the sequence in the pack."""
    ends: torch.Tensor
    """int64 [n], place of each sequence's last token."""
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

    Replicas share out the packs; within a replica all ranks run each pack together.

    Args:
        session: The model.
        sequences: Ids `[n]` each, at least one.
        measure: Makes the numbers `[n]` of a pack from what the model's last chunk returned.
        batch_tokens: Tokens of a forward pass, if no sequence is longer; changes speed and memory
            only.
        labels: Ids `[n]` each that the model gets as its labels; None gives none.

    Returns:
        The numbers in order, the same on every rank; they may not be finite.

    Raises:
        ConfigError: `batch_tokens` is none.
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
        numbers = items[starts[index] : starts[index + 1]].tolist()
        laid = _lay(
            [sequences[number] for number in numbers],
            None if labels is None else [labels[number] for number in numbers],
            ranks.device,
        )
        output = _run(session, laid)
        if output is not None:  # here is the last stage
            found.update(zip(numbers, measure(output, laid).tolist(), strict=True))
    told = [*found.items()] if ranks.tensor_rank == 0 else []
    answers = ranks.agreement.on_all_ranks(lambda: told)
    ordered = dict(tuple(item) for answer in answers for item in answer)
    return [ordered[number] for number in range(len(sequences))]


def _lay(
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
    """Parts end to end, int64 [1, s]."""
    return torch.from_numpy(np.concatenate(parts).astype(np.int64)).unsqueeze(0).to(device)


def _run(session: Session, laid: Pack) -> torch.Tensor | None:
    return relay_forward(
        session.chunks,
        lambda chunk: chunk(
            laid.tokens, laid.positions, segment_ids=laid.segment_ids, labels=laid.labels
        ),
        shape=(laid.tokens.shape[1], 1, session.config.hidden_size),
        dtype=session.settings.params_dtype,
        ranks=session.ranks,
    )
