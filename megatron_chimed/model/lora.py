"""LoRA: small trained matrices beside frozen ones, split over the ranks as those are.

A matrix W [out, in] that is a target gets an A [rank, in] and a B [out, rank], and what it gives
becomes W x + (alpha / rank) B A dropout(x). Everything else is frozen, except a reward model's
head: no gradient, no gradient buffer, no optimizer state.

Tensor parallelism: where W is split by output rows, so is B, and A is whole on every rank; where W
is split by input columns, so is A, and B is whole. The one exchange of a layer is of A's results,
[s, b, rank] for each matrix.

Source: Hu et al., LoRA (arXiv 2106.09685), section 4.1.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel import (
    set_tensor_model_parallel_attributes,
)

from megatron_chimed.config.lora import LoraConfig
from megatron_chimed.config.model import ModelConfig
from megatron_chimed.engine import (
    EngineSettings,
    ShardSpec,
    mark_sequence_parallel,
    tensor_parallel_stream,
)
from megatron_chimed.kernels import AUTO
from megatron_chimed.model.parallel import (
    FusedColumnParallelLinear,
    RowParallelLinear,
    is_product,
)
from megatron_chimed.model.transformer import Transformer

A_SUFFIX, B_SUFFIX = ".lora_A.weight", ".lora_B.weight"
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Layer = FusedColumnParallelLinear | RowParallelLinear


def is_adapter(key: str) -> bool:
    """Whether a tensor is an A or a B, or optimizer state of one."""
    return key.endswith((A_SUFFIX, B_SUFFIX))


def count_adapters(model: ModelConfig, config: LoraConfig) -> int:
    """Elements of all adapters of a model; 0 without a rank."""
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    widths = {  # out + in
        "q_proj": model.query_width + hidden,
        "k_proj": model.kv_width + hidden,
        "v_proj": model.kv_width + hidden,
        "o_proj": hidden + model.query_width,
        "gate_proj": ffn + hidden,
        "up_proj": ffn + hidden,
        "down_proj": hidden + ffn,
    }
    return model.num_layers * config.rank * sum(widths[name] for name in config.targets)


class _Matrices(torch.nn.Module):
    """The A matrices, or the B matrices, of one layer in one weight, one below the other.

    Args:
        specs: What its rows hold, in their order; keys without the path of the owner.
        columns: Width on this rank.
        settings: The job's engine settings.
        split_dim: Which dimension tensor-parallel ranks share; None: each holds the whole.
    """

    def __init__(
        self,
        specs: Sequence[ShardSpec],
        columns: int,
        *,
        settings: EngineSettings,
        split_dim: int | None,
    ) -> None:
        super().__init__()
        self.rows = [spec.rows for spec in specs]
        starts = itertools.accumulate(self.rows, initial=0)
        self._specs = [
            dataclasses.replace(spec, first_row=start)
            for spec, start in zip(specs, starts, strict=False)
        ]
        device = "cpu" if settings.use_cpu_initialization else "cuda"
        self.weight = torch.nn.Parameter(
            torch.empty(sum(self.rows), columns, dtype=settings.params_dtype, device=device)
        )
        if split_dim is not None:
            set_tensor_model_parallel_attributes(self.weight, True, split_dim, 1)
        else:
            mark_sequence_parallel(self.weight, settings)

    def shard_specs(self, prefix: str) -> list[ShardSpec]:
        """This rank's shard of each matrix; `prefix` is the path of the owning module."""
        return [dataclasses.replace(spec, key=prefix + spec.key) for spec in self._specs]


class _Down(_Matrices):
    def forward(self, x: torch.Tensor, product: Product) -> torch.Tensor:
        """[s, b, in] -> [s, b, n rank], of n matrices side by side."""
        return product(x, self.weight)


class _Up(_Matrices):
    def forward(self, narrow: torch.Tensor, product: Product) -> list[torch.Tensor]:
        """[s, b, n rank] -> [s, b, out] of each of n matrices."""
        inputs = narrow.split(self.weight.shape[1], dim=-1)
        return [product(x, w) for x, w in zip(inputs, self.weight.split(self.rows), strict=True)]


class Adapter:
    """What is added to the result of one layer, as a forward hook of it.

    Args:
        layer: The layer, frozen.
        config: Sizes; at least one matrix of the layer is a target.
        settings: The job's engine settings.
    """

    def __init__(self, layer: Layer, config: LoraConfig, settings: EngineSettings) -> None:
        self.config = config
        self.is_row_parallel = isinstance(layer, RowParallelLinear)
        held = layer.shard_specs("")
        assert layer.weight is not None, "its weight is not shared"
        self.is_target = [_name(spec) in config.targets for spec in held]
        self.widths = [spec.rows for spec in held]
        targets = list(itertools.compress(held, self.is_target))
        self.down = _Down(
            [_spec_of_a(spec, config.rank) for spec in targets],
            layer.weight.shape[1],
            settings=settings,
            split_dim=1 if self.is_row_parallel else None,
        )
        self.up = _Up(
            [_spec_of_b(spec, config.rank) for spec in targets],
            config.rank,
            settings=settings,
            split_dim=None if self.is_row_parallel else 0,
        )

    def __call__(
        self, layer: Layer, inputs: tuple[torch.Tensor], output: torch.Tensor
    ) -> torch.Tensor:
        """Adds to `output`, which the layer made of `inputs`."""
        product = AUTO.invariant_linear if is_product(layer) else F.linear
        narrow = self.down(self._drop(inputs[0], layer), product) * self.config.scale
        updates = iter(self.up(self._exchange(narrow, layer), product))
        results = [
            result + next(updates) if is_target else result
            for result, is_target in zip(output.split(self.widths, -1), self.is_target, strict=True)
        ]
        return results[0] if len(results) == 1 else torch.cat(results, dim=-1)

    def _drop(self, x: torch.Tensor, layer: Layer) -> torch.Tensor:
        if not (self.config.dropout and layer.training):
            return x
        # Where ranks hold other tokens or other columns they need other masks; else, the same.
        is_split = self.is_row_parallel or layer.sequence_parallel
        with tensor_parallel_stream() if is_split else contextlib.nullcontext():
            return F.dropout(x, self.config.dropout)

    def _exchange(self, narrow: torch.Tensor, layer: Layer) -> torch.Tensor:
        """What the collectives around the layer are to it, for A's results [s, b, n rank]."""
        split, group = layer.sequence_parallel, layer.tp_group
        if self.is_row_parallel:  # A's columns are split: sum
            reduce = (
                tensor_parallel.reduce_scatter_to_sequence_parallel_region
                if split
                else tensor_parallel.reduce_from_tensor_model_parallel_region
            )
            return reduce(narrow, group=group)
        # B's rows are split: each rank's gradient of A's results is a part of the sum.
        if split:
            return tensor_parallel.gather_from_sequence_parallel_region(narrow, group=group)
        return tensor_parallel.copy_to_tensor_model_parallel_region(narrow, group=group)


def add_adapters(chunk: Transformer, config: LoraConfig) -> None:
    """Freezes a chunk, except a reward head, and gives its target matrices adapters."""
    chunk.requires_grad_(False)
    if chunk.score is not None:
        chunk.score.requires_grad_(True)
    if chunk.embed_tokens is not None:
        # Recomputation gives no gradients to what is inside of it unless its input asks for one.
        chunk.embed_tokens.register_forward_hook(_ask_for_gradient)
    for layer in chunk.decoder_layers:
        for owner in (layer.self_attn, layer.mlp):
            for name, child in list(owner.named_children()):
                if isinstance(child, Layer) and _has_target(child, config):
                    adapter = Adapter(child, config, chunk.config)
                    # Beside the layer, where paths begin as the base matrices' do.
                    owner.add_module(f"{name}_lora_A", adapter.down)
                    owner.add_module(f"{name}_lora_B", adapter.up)
                    child.register_forward_hook(adapter)


def _ask_for_gradient(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
    output.requires_grad_(torch.is_grad_enabled())


def _has_target(layer: Layer, config: LoraConfig) -> bool:
    return any(_name(spec) in config.targets for spec in layer.shard_specs(""))


def _name(spec: ShardSpec) -> str:
    """Of a base matrix, such as `q_proj`."""
    return spec.key.removesuffix(".weight")


def _spec_of_a(base: ShardSpec, rank: int) -> ShardSpec:
    """A has the columns of its base matrix."""
    return dataclasses.replace(
        base,
        key=_name(base) + A_SUFFIX,
        global_shape=(rank, base.global_shape[1]),
        offset=(0, base.offset[1]),
        rows=rank,
        copies=1,  # its gradient is complete on every rank (`_exchange`)
    )


def _spec_of_b(base: ShardSpec, rank: int) -> ShardSpec:
    """B has the rows of its base matrix."""
    return dataclasses.replace(
        base,
        key=_name(base) + B_SUFFIX,
        global_shape=(base.global_shape[0], rank),
        offset=(base.offset[0], 0),
    )
