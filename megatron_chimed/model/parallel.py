"""Tensor-parallel layers: megatron-core's, extended by which global tensors they hold.

A fused matrix holds this rank's shards of several named matrices one after the other, so that one
product and one collective serve all of them, while a checkpoint has each under its own name.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel import layers as megatron_layers
from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes

from megatron_chimed.engine import EngineSettings, ShardSpec
from megatron_chimed.kernels import AUTO
from megatron_chimed.model.linear import CpuProducts

HEAD_KEY, EMBEDDING_KEY = "lm_head.weight", "model.embed_tokens.weight"


def _no_init(weight: torch.Tensor) -> None:
    """Weights are filled by `model.init` after construction."""


def is_product(layer: torch.nn.Module) -> bool:
    """Whether forward computes only the product and its sum over ranks, for inference.

    In inference mode, which generation uses: megatron-core always prepares for backward, and the
    last bits of its products depend on the number of tokens.
    """
    return torch.is_inference_mode_enabled() and not layer.sequence_parallel


class FusedColumnParallelLinear(CpuProducts, tensor_parallel.ColumnParallelLinear):
    """Several matrices over the same input, each split by output rows over the TP ranks.

    Args:
        input_size: Width of the input.
        outputs: Name -> output width of each matrix, in the order of the result.
        settings: The job's engine settings.
        group: Tensor-parallel group.
        smallest: Rows that are not split further: with more ranks than such blocks in a matrix,
            neighbouring ranks hold the same one.
    """

    def __init__(
        self,
        input_size: int,
        outputs: Mapping[str, int],
        *,
        settings: EngineSettings,
        group: torch.distributed.ProcessGroup,
        smallest: int = 1,
    ) -> None:
        self.copies = {
            name: max(1, group.size() * smallest // width) for name, width in outputs.items()
        }
        local = {name: width * self.copies[name] // group.size() for name, width in outputs.items()}
        super().__init__(
            input_size,
            sum(local.values()) * group.size(),
            config=settings,
            init_method=_no_init,
            bias=False,
            tp_group=group,
        )
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)
        self.outputs = local

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[s(/t), b, h] -> [s, b, sum of widths/t]: the results side by side."""
        if is_product(self):
            return AUTO.invariant_linear(x, self.weight)
        return super().forward(x)[0]

    def split(self, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The result of `forward` as one view [s, b, width/t] for each matrix."""
        return y.split(tuple(self.outputs.values()), dim=-1)

    def shard_specs(self, prefix: str) -> list[ShardSpec]:
        """This rank's rows of each matrix; `prefix` is the path of the owning module."""
        found, first_row = [], 0
        for name, rows in self.outputs.items():
            copies = self.copies[name]
            found.append(
                ShardSpec(
                    key=f"{prefix}{name}.weight",
                    global_shape=(rows * self.tp_group.size() // copies, self.input_size),
                    offset=(rows * (self.tp_group.rank() // copies), 0),
                    first_row=first_row,
                    rows=rows,
                    copies=copies,
                )
            )
            first_row += rows
        return found


class FusedBias(torch.nn.Module):
    """Biases of the matrices of a fused layer, side by side and split as its rows are.

    A module of its own: the products of inference, of adapters and of a CPU know of no bias.

    Args:
        layer: To whose result it is added.
        settings: The job's engine settings.
    """

    def __init__(self, layer: FusedColumnParallelLinear, settings: EngineSettings) -> None:
        super().__init__()
        self._specs = [
            dataclasses.replace(
                spec,
                key=spec.key.removesuffix("weight") + "bias",
                global_shape=spec.global_shape[:1],
                offset=spec.offset[:1],
            )
            for spec in layer.shard_specs("")
        ]
        device = "cpu" if settings.use_cpu_initialization else "cuda"
        width = sum(spec.rows for spec in self._specs)
        self.weight = torch.nn.Parameter(
            torch.empty(width, dtype=settings.params_dtype, device=device)
        )
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """[s, b, sum of widths/t], of the same shape."""
        return y + self.weight

    def shard_specs(self, prefix: str) -> list[ShardSpec]:
        """This rank's part of each bias; `prefix` is the path of the owning module."""
        return [dataclasses.replace(spec, key=prefix + spec.key) for spec in self._specs]


class RowParallelLinear(CpuProducts, tensor_parallel.RowParallelLinear):
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
        if not is_product(self):
            return super().forward(x)[0]
        partial_sum = AUTO.invariant_linear(x, self.weight)
        if self.tp_group.size() > 1:
            dist.all_reduce(partial_sum, group=self.tp_group)
        return partial_sum

    def shard_specs(self, prefix: str) -> list[ShardSpec]:
        """This rank's columns of the matrix."""
        rows, columns = self.weight.shape
        return [
            ShardSpec(
                key=f"{prefix}{self.name}.weight",
                global_shape=(rows, columns * self.tp_group.size()),
                offset=(0, columns * self.tp_group.rank()),
                first_row=0,
                rows=rows,
            )
        ]


class VocabParallelRows:
    """Mixin: a [vocabulary/t, h] weight; the global tensor holds only its true rows."""

    weight: torch.nn.Parameter

    def vocab_shard_specs(self, key: str, vocab_size: int, rank: int) -> list[ShardSpec]:
        """This rank's true rows; none if its whole shard is padding."""
        rows, width = self.weight.shape
        first = rank * rows
        return [
            ShardSpec(
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
            # With sequence parallelism the sum over the vocabulary is a reduce-scatter over s.
            reduce_scatter_embeddings=settings.sequence_parallel,
            config=settings,
            tp_group=group,
        )
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)
        self.vocab_size, self.tensor_group = vocab_size, group

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[b, s] int64 -> [s(/t), b, h]."""
        embedded = super().forward(tokens)
        return embedded if self.reduce_scatter_embeddings else embedded.transpose(0, 1).contiguous()

    def shard_specs(self, prefix: str) -> list[ShardSpec]:
        """This rank's rows of the embedding."""
        return self.vocab_shard_specs(
            f"{prefix}embed_tokens.weight", self.vocab_size, self.tensor_group.rank()
        )


class VocabParallelHead(VocabParallelRows, CpuProducts, tensor_parallel.ColumnParallelLinear):
    """Output projection split over the vocabulary; logits of padding are -inf.

    Args:
        vocab_size: True vocabulary.
        padded_vocab_size: Rows over all ranks.
        settings: The job's engine settings.
        group: Tensor-parallel group.
        key: Name of the global tensor; the embedding's for a tied head.
        shared: The embedding, where a tied head is in the same chunk; None: it has its own weight.
    """

    def __init__(
        self,
        vocab_size: int,
        padded_vocab_size: int,
        *,
        settings: EngineSettings,
        group: torch.distributed.ProcessGroup,
        key: str = HEAD_KEY,
        shared: torch.nn.Parameter | None = None,
    ) -> None:
        super().__init__(
            settings.hidden_size,
            padded_vocab_size,
            config=settings,
            init_method=_no_init,
            bias=False,
            skip_weight_param_allocation=shared is not None,
            tp_group=group,
        )
        if shared is None:
            set_tensor_model_parallel_attributes(self.weight, True, 0, 1)
        else:
            self.weight = shared
        self.vocab_size, self.key = vocab_size, key

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[s(/t), b, h] -> logits [s, b, padded v/t]."""
        if is_product(self):
            logits = AUTO.invariant_linear(hidden, self.weight)
        else:
            logits, _ = super().forward(hidden)
        width = logits.shape[-1]
        padding = (self.tp_group.rank() + 1) * width - self.vocab_size
        if padding > 0:
            logits[..., max(0, width - padding) :] = float("-inf")
        return logits

    def shard_specs(self, prefix: str) -> list[ShardSpec]:
        """This rank's rows of the head."""
        return self.vocab_shard_specs(prefix + self.key, self.vocab_size, self.tp_group.rank())


@contextlib.contextmanager
def whole_sequences(chunks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Turns sequence parallelism off in these chunks for the block; not for gradients."""
    names = ("sequence_parallel", "reduce_scatter_embeddings")
    split = [
        (module, name)
        for chunk in chunks
        for module in chunk.modules()
        for name in names
        if getattr(module, name, False)
    ]
    try:
        for module, name in split:
            setattr(module, name, False)
        yield
    finally:
        for module, name in split:
            setattr(module, name, True)


def gather_vocabulary(logits: torch.Tensor, group: torch.distributed.ProcessGroup) -> torch.Tensor:
    """[.., v/t] on each rank -> [.., v] on all; not for gradients."""
    return megatron_layers.gather_from_tensor_model_parallel_region(logits, group=group)
