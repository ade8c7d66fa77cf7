"""A loaded model, ready to generate or score, at the parallel layout of this job."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Literal

from torch.distributed.distributed_c10d import Store

from megatron_chimed import engine
from megatron_chimed.checkpoint.adapters import merge_adapters
from megatron_chimed.checkpoint.load import load_checkpoint, stored_model_config
from megatron_chimed.checkpoint.manifest import manifest_sha256
from megatron_chimed.checkpoint.reader import (
    CheckpointReader,
    newest_checkpoint,
    open_checkpoint,
)
from megatron_chimed.conversion.hf_generation import stop_ids
from megatron_chimed.data.templates import STORED_KEY, Template, stored_template
from megatron_chimed.engine import EngineSettings, ParallelConfig, ParallelLayout, Ranks
from megatron_chimed.errors import CheckpointError
from megatron_chimed.generation.memory_errors import explaining_inference_memory
from megatron_chimed.model import (
    SCORE_KEY,
    ModelConfig,
    Transformer,
    build_chunks,
    weight_shards,
    whole_sequences,
)
from megatron_chimed.tokenizer import Tokenizer, load_tokenizer

# The tensor whose stored dtype is taken as the model's: every checkpoint has it.
COMMON_KEY = "model.embed_tokens.weight"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """A model on this rank, in evaluation mode, with its tokenizer and template."""

    chunks: Sequence[Transformer]
    """This rank's model chunks, in virtual pipeline order."""
    settings: EngineSettings
    """Without sequence parallelism: one token per step cannot be split."""
    ranks: Ranks
    """This rank's indices and process groups."""
    tokenizer: Tokenizer | None = None
    """None if only token ids are needed."""
    template: Template | None = None
    """The chat template that the model was trained with; None if its checkpoint names none."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end a completion: the tokenizer's end of sequence, and those that an imported
    Hugging Face model names."""

    def __post_init__(self) -> None:
        assert not self.settings.sequence_parallel, "build the model without sequence parallelism"
        assert not any(chunk.training for chunk in self.chunks), "call eval() on the chunks first"

    @property
    def config(self) -> ModelConfig:
        """Sizes of the whole model."""
        return self.chunks[0].model_config

    @property
    def vocab_size(self) -> int:
        """Number of ids that can be drawn: rows without a token in the tokenizer are padding."""
        if self.tokenizer is None:
            return vocab_size_of(self.config)
        return min(vocab_size_of(self.config), self.tokenizer.vocab_size)

    @property
    def layers(self) -> list[int]:
        """Global indices of the layers on this rank."""
        return [layer for chunk in self.chunks for layer in chunk.layer_indices]


@contextlib.contextmanager
def open_session(
    checkpoint: str | os.PathLike,
    parallel: ParallelConfig,
    *,
    head: Literal["lm", "score"] = "lm",
    precision: str | None = None,
    device: str | None = "auto",
    world: tuple[int, int, int] | None = None,
    store: Store | None = None,
) -> Iterator[Session]:
    """Joins the other ranks and loads a checkpoint; leaves the group at the end of the block.

    Args:
        checkpoint: One committed checkpoint, or a folder of them, of which the newest is loaded.
        parallel: The layout, independent of the one that saved; layers are split evenly over
            pipeline stages unless it says otherwise.
        head: The kind of model that is required: a language model or a reward model.
        precision: `fp32`, `bf16` or `fp16`; None takes the precision of the stored weights.
        device: As of `engine.use_device`; None: the process has decided before.
        world: (rank, world size, local rank); None takes the values set by torchrun.
        store: Rendezvous; None takes torchrun's.

    Raises:
        CheckpointError: There is none, it is damaged, or its model cannot be built.
        ConfigError: Layout, ranks or device do not fit, or the ranks do not agree.
        ParallelError: The other ranks could not be reached.
        GpuMemoryError: A GPU is out of memory, while loading or in the block.
    """
    # The layout must precede the process groups, and these the shared verification, so the sizes
    # are read first. A damaged checkpoint is never replaced by an older one: its outputs would pass
    # for the newest model's.
    newest = newest_checkpoint(checkpoint)
    stored = CheckpointReader(newest)
    config = stored_model_config(stored)
    _check_head(stored, config, head)
    rank, world_size, local_rank = world or engine.world_from_environment()
    layout = plan_session(parallel, config, world_size)
    if device is not None:
        engine.use_device(device, local_rank=local_rank, num_parameters=config.num_parameters)
    dtype = engine.DTYPES[precision or _stored_precision(stored)]
    with _job(explaining_inference_memory(config, layout, head, dtype)):
        ranks = engine.join(layout, rank=rank, local_rank=local_rank, store=store)
        agreement = ranks.agreement
        manifest = f"sha256 {manifest_sha256(stored.manifest)}"
        agreement.require_same({"checkpoint": manifest, "precision": precision, "head": head})
        reader = open_checkpoint(newest, agreement=agreement)
        precision = precision or _stored_precision(reader)
        width = config.hidden_size
        settings = engine.engine_settings(layout, hidden_size=width, precision=precision)
        chunks = [c.eval() for c in build_chunks(config, settings=settings, ranks=ranks)]
        load_checkpoint(merge_adapters(reader), weight_shards(chunks), agreement=agreement)
        tokenizer = _load_tokenizer(reader, config)
        yield Session(
            chunks=chunks,
            settings=settings,
            ranks=ranks,
            tokenizer=tokenizer,
            template=stored_template(reader.config.get(STORED_KEY), str(reader.directory)),
            stop_ids=stop_ids(reader.config, () if tokenizer is None else tokenizer.stop_ids),
        )


@contextlib.contextmanager
def live_session(
    chunks: Sequence[Transformer],
    ranks: Ranks,
    *,
    tokenizer: Tokenizer | None = None,
) -> Iterator[Session]:
    """Generates with the weights of a running training job, in place; nothing is copied.

    Inside the block the chunks are in evaluation mode and without sequence parallelism; afterwards
    training continues unchanged. If the all-gather of weights overlaps with the forward pass, call
    `engine.synchronize_parameters` first.

    Args:
        chunks: The job's unwrapped model chunks on this rank.
        ranks: This rank's indices and process groups.
        tokenizer: None if only token ids are needed.
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


def vocab_size_of(config: ModelConfig) -> int:
    """The vocabulary size of a model whose checkpoint was read, so that it is known."""
    assert config.vocab_size is not None, "a checkpoint stores its model's vocabulary size"
    return config.vocab_size


def require_tokenizer(session: Session) -> Tokenizer:
    """The session's tokenizer.

    Raises:
        CheckpointError: The checkpoint has none.
    """
    if session.tokenizer is None:
        raise CheckpointError(
            "the model was saved without its tokenizer, so it cannot read or write text. Convert "
            "or save it again with its tokenizer."
        )
    return session.tokenizer


def plan_session(parallel: ParallelConfig, config: ModelConfig, world_size: int) -> ParallelLayout:
    """The layout that `open_session` uses; nothing is built.

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


@contextlib.contextmanager
def _job(explained: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    """Leaves the process groups at the end of the block, before an error is explained."""
    with explained:
        try:
            yield
        finally:
            engine.leave()


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
    tokenizer, vocab_size = load_tokenizer(reader.tokenizer_folder), vocab_size_of(config)
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"{reader.tokenizer_folder} has {tokenizer.vocab_size} tokens, but the model has rows "
            f"for {vocab_size}: the tokenizer belongs to another model."
        )
    identity = reader.state.get("tokenizer_identity")
    if identity is not None and identity != tokenizer.identity:
        raise CheckpointError(
            f"{reader.tokenizer_folder} is not the tokenizer that the model was trained with "
            f"(sha256 {tokenizer.identity[:12]}, not {identity[:12]}): its ids have other meanings."
        )
    return tokenizer
