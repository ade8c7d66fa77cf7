"""The parallel matrices: megatron-core's layers that know which global tensors they hold.

A fused matrix keeps this rank's share of several named matrices one after the other, so that one
product and one collective serve all of them, while checkpoints see each under its own name.
"""

from collections.abc import Mapping

import torch
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel import layers as megatron_layers
from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes

from megatron_chimed.engine import EngineSettings, Piece


def _no_init(weight: torch.Tensor) -> None:
    """Weights are filled by `model.init` after construction."""


class FusedColumnParallelLinear(tensor_parallel.ColumnParallelLinear):
    """Several matrices over the same input, each split by output rows over the TP ranks.

    Args:
        input_size: Width of the input.
        outputs: Name -> output width of each matrix, in the order of the result.
        settings: The job's engine settings.
        group: Tensor-parallel group.
    """

    def __init__(
        self,
        input_size: int,
        outputs: Mapping[str, int],
        *,
        settings: EngineSettings,
        group: torch.distributed.ProcessGroup,
    ) -> None:
        super().__init__(
            input_size,
            sum(outputs.values()),
            config=settings,
            init_method=_no_init,
            bias=False,
            tp_group=group,
        )
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)
        self.outputs = {name: width // group.size() for name, width in outputs.items()}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[s(/t), b, h] -> [s, b, sum of widths/t]: the results side by side."""
        return super().forward(x)[0]

    def split(self, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The result of `forward` as one view [s, b, width/t] for each matrix."""
        return y.split(tuple(self.outputs.values()), dim=-1)

    def pieces(self, prefix: str) -> list[Piece]:
        """This rank's rows of each matrix; `prefix` is the path of the owning module."""
        found, first_row = [], 0
        for name, rows in self.outputs.items():
            found.append(
                Piece(
                    key=f"{prefix}{name}.weight",
                    global_shape=(rows * self.tp_group.size(), self.input_size),
                    offset=(rows * self.tp_group.rank(), 0),
                    first_row=first_row,
                    rows=rows,
                )
            )
            first_row += rows
        return found


class RowParallelLinear(tensor_parallel.RowParallelLinear):
    """A matrix split by input columns over the TP ranks; partial sums are reduced."""

    def __init__(
        self,
        name: str,
        input_size: int,
        output_size: int,
        *,
        settings: EngineSettings,
        group: torch.distributed.ProcessGroup,
    ) -> None:
        super().__init__(
            input_size,
            output_size,
            config=settings,
            init_method=_no_init,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=group,
        )
        set_tensor_model_parallel_attributes(self.weight, True, 1, 1)
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[s, b, width/t] -> [s(/t), b, h]."""
        return super().forward(x)[0]

    def pieces(self, prefix: str) -> list[Piece]:
        """This rank's columns of the matrix."""
        rows, columns = self.weight.shape
        return [
            Piece(
                key=f"{prefix}{self.name}.weight",
                global_shape=(rows, columns * self.tp_group.size()),
                offset=(0, columns * self.tp_group.rank()),
                first_row=0,
                rows=rows,
            )
        ]


class VocabParallelRows:
    """Mixin: a [vocabulary/t, h] weight of which the global tensor holds the true rows only."""

    weight: torch.nn.Parameter

    def vocab_pieces(self, key: str, vocab_size: int, rank: int) -> list[Piece]:
        """This rank's true rows; none where its whole share is padding."""
        rows, width = self.weight.shape
        first = rank * rows
        return [
            Piece(
                key=key,
                global_shape=(vocab_size, width),
                offset=(min(first, vocab_size), 0),
                first_row=0,
                rows=max(0, min(rows, vocab_size - first)),
            )
        ]


class VocabParallelEmbedding(VocabParallelRows, tensor_parallel.VocabParallelEmbedding):
    """Token embedding split over the vocabulary."""

    def __init__(
        self,
        vocab_size: int,
        padded_vocab_size: int,
        *,
        settings: EngineSettings,
        group: torch.distributed.ProcessGroup,
    ) -> None:
        super().__init__(
            padded_vocab_size,
            settings.hidden_size,
            init_method=_no_init,
            # With sequence parallelism the sum over the vocabulary is also the split over s.
            reduce_scatter_embeddings=settings.sequence_parallel,
            config=settings,
            tp_group=group,
        )
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)
        self.vocab_size = vocab_size

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[b, s] int64 -> [s(/t), b, h]."""
        embedded = super().forward(tokens)
        return embedded if self.reduce_scatter_embeddings else embedded.transpose(0, 1).contiguous()

    def pieces(self, prefix: str) -> list[Piece]:
        """This rank's rows of the embedding."""
        return self.vocab_pieces(
            f"{prefix}embed_tokens.weight", self.vocab_size, self.tp_group.rank()
        )


class VocabParallelHead(VocabParallelRows, tensor_parallel.ColumnParallelLinear):
    """Untied output projection split over the vocabulary; padding scores -inf."""

    def __init__(
        self,
        vocab_size: int,
        padded_vocab_size: int,
        *,
        settings: EngineSettings,
        group: torch.distributed.ProcessGroup,
    ) -> None:
        super().__init__(
            settings.hidden_size,
            padded_vocab_size,
            config=settings,
            init_method=_no_init,
            bias=False,
            tp_group=group,
        )
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)
        self.vocab_size = vocab_size

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[s(/t), b, h] -> logits [s, b, padded v/t]."""
        logits, _ = super().forward(hidden)
        width = logits.shape[-1]
        padding = (self.tp_group.rank() + 1) * width - self.vocab_size
        if padding > 0:
            logits[..., max(0, width - padding) :] = float("-inf")
        return logits

    def pieces(self, prefix: str) -> list[Piece]:
        """This rank's rows of the head."""
        return self.vocab_pieces(f"{prefix}lm_head.weight", self.vocab_size, self.tp_group.rank())


def gather_vocabulary(logits: torch.Tensor, group: torch.distributed.ProcessGroup) -> torch.Tensor:
    """[.., v/t] on each rank -> [.., v] on all of them (no gradient is needed of it)."""
    return megatron_layers.gather_from_tensor_model_parallel_region(logits, group=group)
