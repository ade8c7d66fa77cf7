"""The parallel layout: what is requested, what follows from it, and all checks.

A layout is checked completely before any process group or weight is made. Rank order is
megatron-core's: tensor-parallel ranks are neighbours, then data-parallel, then pipeline ranks.
"""

import math
from dataclasses import dataclass

from megatron_chimed.errors import ConfigError

MAX_TIMEOUT_SECONDS = 1e6  # beyond it, milliseconds leave the integers of gloo


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the model and the batch are split over ranks."""

    tensor_parallel_size: int = 1
    """Ranks that share each weight matrix."""
    pipeline_parallel_size: int = 1
    """Pipeline stages: ranks that share the layers."""
    virtual_pipeline_parallel_size: int = 1
    """Model chunks on each pipeline rank (interleaved 1F1B when above 1)."""
    pipeline_split: tuple[int, ...] | None = None
    """Layers of each chunk in pipeline order, PP x VPP entries; null: an even split."""
    sequence_parallel: bool = False
    """Split norms, dropout and the residual stream over the tensor-parallel ranks."""
    distributed_optimizer: bool = False
    """Shard optimizer state over the data-parallel ranks (ZeRO-1)."""
    overlap_grad_reduce: bool = False
    """Reduce gradients bucket by bucket during the backward pass."""
    overlap_param_gather: bool = False
    """Gather updated parameters during the next forward pass (needs the distributed optimizer)."""
    timeout_seconds: float = 600.0
    """Longest wait in a collective; then the job fails instead of hanging."""

    def __post_init__(self) -> None:
        for name in (
            "tensor_parallel_size",
            "pipeline_parallel_size",
            "virtual_pipeline_parallel_size",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"--parallel.{name} is {getattr(self, name)}, but a size counts ranks or "
                    "chunks. Set it to 1 or more."
                )
        if not 0 < self.timeout_seconds <= MAX_TIMEOUT_SECONDS:
            raise ConfigError(
                f"--parallel.timeout_seconds is {self.timeout_seconds}: a collective without a "
                "timeout can hang for ever. Set it above 0, and to at most "
                f"{MAX_TIMEOUT_SECONDS:g}."
            )


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """The sizes of a model that a layout divides."""

    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    ffn_hidden_size: int
    seq_length: int


@dataclass(frozen=True, kw_only=True)
class ParallelLayout:
    """A checked layout. Build one with `plan_layout`."""

    config: ParallelConfig
    world_size: int
    data_parallel_size: int
    layers_per_chunk: tuple[int, ...]
    """Layers of each chunk in pipeline order; chunk c lives on pipeline rank c % PP."""

    @property
    def tensor_parallel_size(self) -> int:
        """Ranks that share each weight matrix."""
        return self.config.tensor_parallel_size

    @property
    def pipeline_parallel_size(self) -> int:
        """Pipeline stages."""
        return self.config.pipeline_parallel_size

    @property
    def virtual_pipeline_parallel_size(self) -> int:
        """Chunks on each pipeline rank."""
        return self.config.virtual_pipeline_parallel_size

    @property
    def sequence_parallel(self) -> bool:
        """Whether activations between matrix products are split over the sequence."""
        return self.config.sequence_parallel

    def chunk_layers(self, chunk: int) -> range:
        """Global indices of the layers of a chunk; chunks are in pipeline order."""
        start = sum(self.layers_per_chunk[:chunk])
        return range(start, start + self.layers_per_chunk[chunk])

    def describe(self) -> str:
        """Short name of the layout for logs and tables."""
        parts = [f"TP{self.tensor_parallel_size}", f"PP{self.pipeline_parallel_size}"]
        if self.virtual_pipeline_parallel_size > 1:
            parts.append(f"VPP{self.virtual_pipeline_parallel_size}")
        parts.append(f"DP{self.data_parallel_size}")
        flags = " +sequence parallel" if self.sequence_parallel else ""
        flags += " +distributed optimizer" if self.config.distributed_optimizer else ""
        return " x ".join(parts) + flags


def plan_layout(config: ParallelConfig, *, world_size: int, sizes: ModelSizes) -> ParallelLayout:
    """Checks a layout against the number of ranks and the model.

    Raises:
        ConfigError: Sizes do not divide or flags exclude each other; the message names the flag and
            the nearest value that works.
    """
    tensor, pipeline = config.tensor_parallel_size, config.pipeline_parallel_size
    if world_size % (tensor * pipeline):
        raise ConfigError(
            f"{world_size} ranks cannot be split into groups of tensor_parallel_size x "
            f"pipeline_parallel_size = {tensor} x {pipeline} = {tensor * pipeline}. Start a "
            f"multiple of {tensor * pipeline} ranks (torchrun --nproc-per-node), or set "
            f"{_nearest_flags(config, world_size, sizes)}."
        )
    _check_tensor_parallel(config, world_size, sizes)
    _check_flags(config)
    return ParallelLayout(
        config=config,
        world_size=world_size,
        data_parallel_size=world_size // (tensor * pipeline),
        layers_per_chunk=_split_layers(config, world_size, sizes),
    )


def _nearest_flags(config: ParallelConfig, world_size: int, sizes: ModelSizes) -> str:
    """Flags for the nearest layout that these ranks and sizes allow."""
    wanted = {
        "tensor_parallel_size": config.tensor_parallel_size,
        "pipeline_parallel_size": config.pipeline_parallel_size,
        "virtual_pipeline_parallel_size": config.virtual_pipeline_parallel_size,
    }
    whole = [sizes.num_attention_heads, sizes.ffn_hidden_size]
    if config.sequence_parallel:
        whole.append(sizes.seq_length)
    candidates = [
        (tensor, pipeline, chunks)
        for tensor in _divisors(math.gcd(world_size, *whole))
        if _fits_key_heads(tensor, sizes)
        for pipeline in _divisors(math.gcd(world_size // tensor, sizes.num_layers))
        for chunks in _divisors(sizes.num_layers // pipeline)
        if pipeline > 1 or chunks == 1
    ]
    nearest = min(
        candidates,
        key=lambda found: sum(abs(a - b) for a, b in zip(found, wanted.values(), strict=True)),
    )
    flags: dict[str, int | str] = {
        name: value
        for (name, asked), value in zip(wanted.items(), nearest, strict=True)
        if value != asked
    }
    if nearest[0] == 1 and config.sequence_parallel:
        flags["sequence_parallel"] = "false"
    if config.pipeline_split is not None and flags.keys() - {"tensor_parallel_size"}:
        flags["pipeline_split"] = "null"
    return " ".join(f"--parallel.{name} {value}" for name, value in flags.items())


def _fits_key_heads(tensor: int, sizes: ModelSizes) -> bool:
    """Whether key heads split over the ranks, or ranks over the key heads."""
    heads = sizes.num_key_value_heads
    return heads % tensor == 0 or tensor % heads == 0


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _check_tensor_parallel(config: ParallelConfig, world_size: int, sizes: ModelSizes) -> None:
    tensor = config.tensor_parallel_size
    shared = {
        "num_attention_heads": sizes.num_attention_heads,
        "ffn_hidden_size": sizes.ffn_hidden_size,
    }
    for name, value in shared.items():
        if value % tensor:
            raise ConfigError(
                f"{name} ({value}) is not divisible by tensor_parallel_size ({tensor}): each rank "
                f"needs whole ones. Set {_nearest_flags(config, world_size, sizes)}."
            )
    if not _fits_key_heads(tensor, sizes):
        raise ConfigError(
            f"num_key_value_heads ({sizes.num_key_value_heads}) is not divisible by "
            f"tensor_parallel_size ({tensor}), nor the other way round: a rank needs whole key "
            "heads, or the same number of ranks has to share each. "
            f"Set {_nearest_flags(config, world_size, sizes)}."
        )
    if config.sequence_parallel and tensor == 1:
        raise ConfigError(
            "sequence parallelism splits the sequence over tensor-parallel ranks, and there is "
            "one. Set --parallel.sequence_parallel false, or tensor_parallel_size to 2 or more."
        )
    if config.sequence_parallel and sizes.seq_length % tensor:
        raise ConfigError(
            f"seq_length ({sizes.seq_length}) is not divisible by tensor_parallel_size ({tensor}), "
            "which sequence parallelism needs. Set --data.seq_length "
            f"{max(1, round(sizes.seq_length / tensor)) * tensor}."
        )


def _check_flags(config: ParallelConfig) -> None:
    if config.virtual_pipeline_parallel_size > 1 and config.pipeline_parallel_size == 1:
        raise ConfigError(
            f"virtual_pipeline_parallel_size is {config.virtual_pipeline_parallel_size}, but "
            "there is one pipeline stage to interleave. Set "
            "--parallel.virtual_pipeline_parallel_size 1, or pipeline_parallel_size to 2 or more."
        )
    if config.overlap_param_gather and not config.distributed_optimizer:
        raise ConfigError(
            "--parallel.overlap_param_gather gathers the shards of the distributed optimizer, "
            "which is off. Set --parallel.distributed_optimizer true too."
        )
    if config.overlap_param_gather and not config.overlap_grad_reduce:
        raise ConfigError(
            "--parallel.overlap_param_gather works on the buckets of overlap_grad_reduce, which is "
            "off. Set --parallel.overlap_grad_reduce true too."
        )


def _split_layers(config: ParallelConfig, world_size: int, sizes: ModelSizes) -> tuple[int, ...]:
    chunks = config.pipeline_parallel_size * config.virtual_pipeline_parallel_size
    split, num_layers = config.pipeline_split, sizes.num_layers
    if num_layers < chunks or (split is None and num_layers % chunks):
        raise ConfigError(
            f"{num_layers} layers do not split evenly over pipeline_parallel_size x "
            f"virtual_pipeline_parallel_size = {chunks} chunks. Set "
            f"{_nearest_flags(config, world_size, sizes)}, or give the layers of every chunk in "
            "pipeline_split, at least one each."
        )
    even = tuple(num_layers // chunks + (c < num_layers % chunks) for c in range(chunks))
    if split is None:
        return even
    if len(split) != chunks or sum(split) != num_layers or min(split) < 1:
        raise ConfigError(
            f"pipeline_split {list(split)} has {len(split)} entries that add up to {sum(split)}; "
            f"it needs {chunks} entries (PP x VPP, in pipeline order) of at least 1 that add up to "
            f"the {num_layers} layers. Set for example --parallel.pipeline_split "
            f"[{','.join(map(str, even))}]."
        )
    return tuple(split)


def check_batch(layout: ParallelLayout, *, micro_batch_size: int, global_batch_size: int) -> int:
    """Micro-batches per data-parallel rank and step.

    Raises:
        ConfigError: The batch does not divide over the layout.
    """
    samples = micro_batch_size * layout.data_parallel_size
    assert samples > 0, f"micro_batch_size is {micro_batch_size}"
    pipeline = layout.pipeline_parallel_size
    interleaved = layout.virtual_pipeline_parallel_size > 1
    unit = samples * pipeline if interleaved else samples
    if global_batch_size < 1 or global_batch_size % unit:
        reason = (
            f" x pipeline_parallel_size = {micro_batch_size} x {layout.data_parallel_size} x "
            f"{pipeline} = {unit}, which interleaved stages need"
            if interleaved
            else f" = {micro_batch_size} x {layout.data_parallel_size} = {unit}"
        )
        raise ConfigError(
            f"global_batch_size ({global_batch_size}) is not a multiple of micro_batch_size x "
            f"data_parallel_size{reason}. Set --training.global_batch_size "
            f"{max(1, round(global_batch_size / unit)) * unit}."
        )
    return global_batch_size // samples
