"""A model ready to generate: weights of a checkpoint at the layout of this job."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Literal

import torch.distributed as dist

from megatron_chimed import engine
from megatron_chimed.checkpoint.adapters import merge_adapters
from megatron_chimed.checkpoint.load import load_checkpoint, stored_model_config
from megatron_chimed.checkpoint.reader import (
    CheckpointReader,
    newest_checkpoint,
    open_checkpoint,
)
from megatron_chimed.conversion.hf_generation import stop_ids
from megatron_chimed.data.templates import STORED_KEY, Template, stored_template
from megatron_chimed.engine import EngineSettings, ParallelConfig, ParallelLayout, Ranks
from megatron_chimed.errors import CheckpointError
from megatron_chimed.model import (
    SCORE_KEY,
    ModelConfig,
    Ziya,
    build_chunks,
    weight_shards,
    whole_sequences,
)
from megatron_chimed.tokenizer import Tokenizer, load_tokenizer

# Whose stored type is taken for the model's: one that every checkpoint has.
COMMON_KEY = "model.embed_tokens.weight"


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
    template: Template | None = None
    """What the model was trained with; None where its checkpoint does not say."""
    stop_ids: tuple[int, ...] = ()
    """Where completions end: the tokenizer's end of sequence, and what the source in Hugging Face
    format names beside it."""

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
        return [layer for chunk in self.chunks for layer in chunk.layer_indices]


@contextlib.contextmanager
def open_session(
    checkpoint: str | os.PathLike,
    parallel: ParallelConfig,
    *,
    head: Literal["lm", "score"] = "lm",
    precision: str | None = None,
    world: tuple[int, int, int] | None = None,
    store: dist.Store | None = None,
) -> Iterator[Session]:
    """Joins the other ranks and loads a checkpoint; leaves them at the end of the block.

    Args:
        checkpoint: One committed checkpoint, or a folder of them, of which the newest is taken.
        parallel: The layout, whatever the one that wrote it; layers are spread as evenly as they
            go unless it says how.
        head: What the model has to be: a language model, or a reward model.
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
    stored = CheckpointReader(newest)
    config = stored_model_config(stored)
    _check_head(stored, config, head)
    rank, world_size, local_rank = world or engine.world_from_environment()
    layout = plan_session(parallel, config, world_size)
    try:
        ranks = engine.join(layout, rank=rank, local_rank=local_rank, store=store)
        agreement = ranks.agreement
        reader = open_checkpoint(newest, agreement=agreement)
        precision = precision or _stored_precision(reader)
        settings = engine.engine_settings(
            layout, hidden_size=config.hidden_size, precision=precision
        )
        chunks = [c.eval() for c in build_chunks(config, settings=settings, ranks=ranks)]
        load_checkpoint(merge_adapters(reader), weight_shards(chunks), agreement=agreement)
        tokenizer = _load_tokenizer(reader, config)
        template = stored_template(reader.config.get(STORED_KEY), str(reader.directory))
        yield Session(
            chunks=chunks,
            settings=settings,
            ranks=ranks,
            tokenizer=tokenizer,
            template=template,
            stop_ids=stop_ids(reader.config, None if tokenizer is None else tokenizer.eos_id),
        )
    finally:
        engine.leave()


@contextlib.contextmanager
def live_session(
    chunks: Sequence[Ziya],
    ranks: Ranks,
    *,
    tokenizer: Tokenizer | None = None,
) -> Iterator[Session]:
    """Generates with the weights of a running training job, in place; nothing is copied.

    For the block the chunks are in evaluation mode and without sequence parallelism; training goes
    on after it as if nothing had been. Where the gather of weights overlaps with the forward pass,
    call `engine.synchronize_parameters` before.

    Args:
        chunks: The job's chunks on this rank, not their wrappers.
        ranks: This rank's place.
        tokenizer: None where only token ids are wanted.
    """
    modes = [chunk.training for chunk in chunks]
    whole = dataclasses.replace(chunks[0].config, sequence_parallel=False)
    try:
        with whole_sequences(chunks):
            chunks = [chunk.eval() for chunk in chunks]
            yield Session(chunks=chunks, settings=whole, ranks=ranks, tokenizer=tokenizer)
    finally:
        for chunk, mode in zip(chunks, modes, strict=True):
            chunk.train(mode)


def plan_session(parallel: ParallelConfig, config: ModelConfig, world_size: int) -> ParallelLayout:
    """The layout that `open_session` takes; nothing is built.

    Raises:
        ConfigError: The model or the number of ranks does not fit it.
    """
    chunks = parallel.pipeline_parallel_size * parallel.virtual_pipeline_parallel_size
    if parallel.pipeline_split is None and chunks <= config.num_layers:
        each, rest = divmod(config.num_layers, chunks)
        split = tuple(each + (chunk < rest) for chunk in range(chunks))
        parallel = dataclasses.replace(parallel, pipeline_split=split)
    sizes = config.sizes(config.max_position_embeddings)
    return engine.plan_layout(parallel, world_size=world_size, sizes=sizes)


def _check_head(reader: CheckpointReader, config: ModelConfig, head: str) -> None:
    if config.head == "score" and head == "lm":
        raise CheckpointError(
            f"{reader.directory} holds a reward model, which writes no text. Give it to "
            "tools/score.py, or give the checkpoint of a language model."
        )
    if head == "score" and (config.head != "score" or SCORE_KEY not in reader.tensors):
        raise CheckpointError(
            f"{reader.directory} has no reward head ({SCORE_KEY}), and with a fresh one its scores "
            "would be noise. Train it first with tools/train.py and `stage: reward`."
        )


def _stored_precision(reader: CheckpointReader) -> str:
    stored = reader.tensors[COMMON_KEY].dtype if COMMON_KEY in reader.tensors else None
    names = [name for name, dtype in engine.DTYPES.items() if dtype is stored]
    if not names:
        raise CheckpointError(
            f"{reader.directory} holds {COMMON_KEY} as {stored}, not as one of "
            f"{', '.join(engine.DTYPES)}. Is it a model of this project?"
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
    identity = reader.state.get("tokenizer_identity")
    if identity is not None and identity != tokenizer.identity:
        raise CheckpointError(
            f"{reader.tokenizer_folder} is not the tokenizer that the model was trained with "
            f"(sha256 {tokenizer.identity[:12]}, not {identity[:12]}): its ids mean other pieces."
        )
    return tokenizer
