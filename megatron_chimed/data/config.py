"""What a run trains on: token files, their shares, and the parts for validation and test."""

import functools
from dataclasses import dataclass
from typing import Any

from megatron_chimed.data.blend import BlendedDataset, ConcatenatedDataset, SampleSource
from megatron_chimed.data.indexed import IndexedDataset
from megatron_chimed.data.pretrain import PretrainDataset
from megatron_chimed.data.split import PARTS, parse_split, split_documents
from megatron_chimed.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BlendSource:
    """One prefix of a blend."""

    prefix: str
    """Path without `.bin` and `.idx`."""

    weight: float = 1.0
    """Share of the samples, relative to the other prefixes."""

    def __post_init__(self) -> None:
        """Checks the weight.

        Raises:
            ConfigError: It is not a positive number.
        """
        if not 0 < self.weight < float("inf"):
            raise ConfigError(
                f"data {self.prefix!r}: weight is {self.weight}; it must be a positive number. "
                "Leave the prefix out to use none of it."
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data of a pre-training run.

    `train` alone trains on all of it; with `split`, its documents are divided; or `valid` and
    `test` name files of their own.
    """

    train: str | tuple[BlendSource, ...]
    """Prefix of the training data, or a list of `{prefix: P, weight: W}` to blend."""

    valid: str | tuple[BlendSource, ...] | None = None
    """Prefix or list for validation, each read once; not together with `split`."""

    test: str | tuple[BlendSource, ...] | None = None
    """Prefix or list for the test at the end, each read once; not together with `split`."""

    split: str | None = None
    """Weights of train, validation and test documents of `train`, such as "969,30,1"."""

    seq_length: int = 2048
    """Tokens per sample."""

    prefetch: int = 2
    """Steps whose samples are read ahead in a thread; 0 reads them when they are needed."""

    def __post_init__(self) -> None:
        """Checks what needs no file.

        Raises:
            ConfigError: A value is out of range or two fields contradict each other.
        """
        if self.seq_length < 1:
            raise ConfigError(f"data.seq_length is {self.seq_length}; it must be at least 1.")
        if self.prefetch < 0:
            raise ConfigError(f"data.prefetch is {self.prefetch}; it must not be negative.")
        for part in PARTS:
            value = getattr(self, part)
            if value is not None and not value:
                raise ConfigError(f"data.{part} names no prefix.")
        if self.split is not None:
            if not parse_split(self.split)[0]:
                raise ConfigError(f"data.split {self.split!r} gives training no documents.")
            if self.valid is not None or self.test is not None:
                raise ConfigError(
                    "data.split divides data.train; it cannot be given together with data.valid "
                    "or data.test. Remove one of them."
                )


@dataclass(frozen=True, kw_only=True)
class Datasets:
    """The parts of a run's data; each is endless."""

    train: SampleSource
    """Shuffled anew in every epoch."""

    valid: SampleSource | None
    """In file order, or None."""

    test: SampleSource | None
    """In file order, or None."""

    order: dict[str, Any]
    """What decides the order of training samples, as JSON values: content of the files and their
    weights, the split, seq_length and seed. A run that goes on must find it unchanged."""


def build_datasets(
    config: DataConfig, *, vocab_size: int, tokenizer_identity: str, seed: int
) -> Datasets:
    """Opens and checks all data of a run.

    Args:
        config: Which data.
        vocab_size: True size of the model's vocabulary.
        tokenizer_identity: `Tokenizer.identity` of the run's tokenizer.
        seed: Of the order of training samples.

    Raises:
        ConfigError: A file is missing or was made with another tokenizer, or the seed is no
            64-bit number.
        DataError: A file is damaged or too small.
    """
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed is {seed}; it must be a number from 0 to 2^64 - 1.")

    @functools.cache  # a split reads the same prefix three times
    def open_checked(prefix: str) -> IndexedDataset:
        indexed = IndexedDataset(prefix)
        check_tokenizer(indexed, vocab_size, tokenizer_identity)
        return indexed

    def build(part: str, sources: tuple[BlendSource, ...], number: int) -> SampleSource | None:
        datasets, weights = [], []
        for source in sources:
            indexed = open_checked(source.prefix)
            documents = _documents_of(config, indexed, number)
            if documents is None:
                return None
            datasets.append(
                PretrainDataset(
                    indexed,
                    documents=documents,
                    seq_length=config.seq_length,
                    seed=seed,
                    shuffle=part == "train",
                )
            )
            weights.append(source.weight)
        if len(datasets) == 1:
            return datasets[0]
        if part == "train":
            return BlendedDataset(datasets, weights)
        return ConcatenatedDataset(datasets)

    built = {}
    for number, part in enumerate(PARTS):
        given = config.train if config.split else getattr(config, part)
        built[part] = build(part, _as_sources(given), number) if given else None
    content = [
        [_content(open_checked(source.prefix)), source.weight]
        for source in _as_sources(config.train)
    ]
    return Datasets(**built, order=_order(config, content, seed))


def _order(config: DataConfig, content: list[list], seed: int) -> dict[str, Any]:
    """`Datasets.order`, under the names of the settings."""
    return {
        "data.train": content,
        "data.split": config.split,
        "data.seq_length": config.seq_length,
        "training.seed": seed,
    }


def _content(indexed: IndexedDataset) -> str:
    """What a prefix holds, wherever it lies: its hashes, or the sizes of a stock Megatron file."""
    if indexed.sidecar is None:
        return f"{len(indexed)} sequences, {int(indexed.lengths.sum())} tokens"
    return f"sha256 {indexed.sidecar.bin_sha256} and {indexed.sidecar.idx_sha256}"


def check_tokenizer(indexed: IndexedDataset, vocab_size: int, tokenizer_identity: str) -> None:
    """Refuses data whose ids mean something else to the model, as far as the sidecar tells.

    Raises:
        ConfigError: Another tokenizer, or ids beyond the vocabulary.
    """
    sidecar = indexed.sidecar
    if sidecar is None:  # a stock Megatron file: only the ids in each batch can be checked
        return
    if sidecar.max_token_id >= vocab_size:
        raise ConfigError(
            f"data {indexed.prefix!r} holds token id {sidecar.max_token_id} (tokenizer "
            f"{sidecar.tokenizer_name!r}, vocabulary {sidecar.vocab_size}), but the model's "
            f"vocabulary is {vocab_size}. Preprocess with the model's tokenizer."
        )
    if sidecar.tokenizer_sha256 != tokenizer_identity:
        raise ConfigError(
            f"data {indexed.prefix!r} was made with tokenizer {sidecar.tokenizer_name!r} "
            f"(sha256 {sidecar.tokenizer_sha256[:12]}, vocabulary {sidecar.vocab_size}), but this "
            f"run's tokenizer is sha256 {tokenizer_identity[:12]} (vocabulary {vocab_size}). "
            "Preprocess again with this run's tokenizer, or name the data's."
        )


def _documents_of(
    config: DataConfig, indexed: IndexedDataset, number: int
) -> tuple[int, int] | None:
    if config.split is None:
        return (0, indexed.num_documents)
    weights = parse_split(config.split)
    return split_documents(weights, indexed.num_documents, indexed.prefix)[number]


def _as_sources(value: str | tuple[BlendSource, ...]) -> tuple[BlendSource, ...]:
    return (BlendSource(prefix=value),) if isinstance(value, str) else tuple(value)
