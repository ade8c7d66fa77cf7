"""A model ready to generate: weights of a checkpoint at the layout of this job."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence

import torch.distributed as dist

from megatron_chimed import engine
from megatron_chimed.checkpoint.control import Control
from megatron_chimed.checkpoint.load import load_checkpoint, stored_model_config
from megatron_chimed.checkpoint.reader import (
    CheckpointReader,
    newest_checkpoint,
    open_checkpoint,
)
from megatron_chimed.engine import EngineSettings, ParallelConfig, ParallelLayout, Ranks
from megatron_chimed.errors import CheckpointError
from megatron_chimed.model import ModelConfig, Ziya, build_chunks, weight_slices
from megatron_chimed.tokenizer import Tokenizer, load_tokenizer

# Whose stored type is taken for the model's: one that every checkpoint has.
HEAD_KEY = "lm_head.weight"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """A model on this rank, in evaluation mode, and what belongs to it."""

    chunks: Sequence[Ziya]
    """This rank's chunks, in virtual stage order."""
    settings: EngineSettings
    """Without sequence parallelism: a step of one token cannot be split."""
    ranks: Ranks
    """This rank's place."""
    tokenizer: Tokenizer | None = None
    """None where only token ids are wanted."""

    def __post_init__(self) -> None:
        assert not self.settings.sequence_parallel, "build the model without sequence parallelism"
        assert not any(chunk.training for chunk in self.chunks), "call eval() on the chunks first"

    @property
    def config(self) -> ModelConfig:
        """Sizes of the whole model."""
        return self.chunks[0].model_config

    @property
    def vocab_size(self) -> int:
        """Ids that can be drawn: rows that no token of the tokenizer has are padding too."""
        if self.tokenizer is None:
            return self.config.vocab_size
        return min(self.config.vocab_size, self.tokenizer.vocab_size)

    @property
    def layers(self) -> list[int]:
        """Global numbers of the layers on this rank."""
        return [layer for chunk in self.chunks for layer in chunk.layer_numbers]


@contextlib.contextmanager
def open_session(
    checkpoint: str | os.PathLike,
    parallel: ParallelConfig,
    *,
    precision: str | None = None,
    world: tuple[int, int, int] | None = None,
    store: dist.Store | None = None,
) -> Iterator[Session]:
    """Joins the other ranks and loads a checkpoint; leaves them at the end of the block.

    Args:
        checkpoint: One committed checkpoint, or a folder of them, of which the newest is taken.
        parallel: The layout, whatever the one that wrote it; layers are spread as evenly as they
            go unless it says how.
        precision: `fp32`, `bf16` or `fp16`; None takes the precision of the stored weights.
        world: (rank, world size, local rank); None takes what torchrun set.
        store: Rendezvous; None takes torchrun's.

    Raises:
        CheckpointError: None is there, it is damaged, or it is no model that this code can build.
        ConfigError: The layout does not fit the model or the number of ranks.
        ParallelError: The other ranks could not be reached.
    """
    # The layout comes before the groups, and the groups before a shared verification: the sizes are
    # read first. Never an older checkpoint instead of a damaged one: its texts would pass for the
    # newest model's.
    newest = newest_checkpoint(checkpoint)
    config = stored_model_config(CheckpointReader(newest))
    rank, world_size, local_rank = world or engine.world_from_environment()
    layout = _plan(parallel, config, world_size)
    try:
        ranks = engine.join(layout, rank=rank, local_rank=local_rank, store=store)
        control = Control(ranks.control_group)
        reader = open_checkpoint(newest, control=control)
        precision = precision or _stored_precision(reader)
        settings = engine.engine_settings(
            layout, hidden_size=config.hidden_size, precision=precision
        )
        chunks = [c.eval() for c in build_chunks(config, settings=settings, ranks=ranks)]
        load_checkpoint(reader, weight_slices(chunks), control=control)
        tokenizer = _load_tokenizer(reader, config)
        yield Session(chunks=chunks, settings=settings, ranks=ranks, tokenizer=tokenizer)
    finally:
        engine.leave()


def _plan(parallel: ParallelConfig, config: ModelConfig, world_size: int) -> ParallelLayout:
    chunks = parallel.pipeline_parallel_size * parallel.virtual_pipeline_parallel_size
    if parallel.pipeline_split is None and chunks <= config.num_layers:
        each, rest = divmod(config.num_layers, chunks)
        split = tuple(each + (chunk < rest) for chunk in range(chunks))
        parallel = dataclasses.replace(parallel, pipeline_split=split)
    sizes = engine.ModelSizes(
        num_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        ffn_hidden_size=config.ffn_hidden_size,
        seq_length=config.max_position_embeddings,
    )
    return engine.plan_layout(parallel, world_size=world_size, sizes=sizes)


def _stored_precision(reader: CheckpointReader) -> str:
    stored = reader.tensors[HEAD_KEY].dtype if HEAD_KEY in reader.tensors else None
    names = [name for name, dtype in engine.DTYPES.items() if dtype is stored]
    if not names:
        raise CheckpointError(
            f"{reader.directory} holds {HEAD_KEY} as {stored}, not as one of "
            f"{', '.join(engine.DTYPES)}. Is it a language model of this project?"
        )
    return names[0]


def _load_tokenizer(reader: CheckpointReader, config: ModelConfig) -> Tokenizer | None:
    if reader.tokenizer_folder is None:
        return None
    tokenizer = load_tokenizer(reader.tokenizer_folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{reader.tokenizer_folder} has {tokenizer.vocab_size} tokens, but the model has rows "
            f"for {config.vocab_size}: the checkpoint's tokenizer is another model's."
        )
    return tokenizer
