"""The data of a run: token files, blend weights, and the validation and test parts."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron_chimed.data.datasets.blend import BlendedDataset, ConcatenatedDataset, SampleSource
from megatron_chimed.data.datasets.file_hashes import open_explained
from megatron_chimed.data.datasets.indexed import IndexedDataset
from megatron_chimed.data.datasets.packing import Overlong
from megatron_chimed.data.datasets.preference import PreferenceDataset
from megatron_chimed.data.datasets.prefix import (
    Prefix,
    check_stage,
    check_tokenizer,
    content_of,
)
from megatron_chimed.data.datasets.pretrain import AtEod, PretrainDataset
from megatron_chimed.data.datasets.sft import SFTDataset
from megatron_chimed.data.datasets.sidecar import Rendering
from megatron_chimed.data.datasets.split import PARTS, parse_split, split_documents
from megatron_chimed.errors import ConfigError

MAX_PREFETCH = 1000
VERIFY = ("once", "always", "size")


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
            ConfigError: The weight is not a positive number.
        """
        if not 0 < self.weight < float("inf"):
            raise ConfigError(
                f"data {self.prefix!r}: weight is {self.weight}; it must be a positive number. "
                "To use none of a prefix, remove it."
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data of a run.

    `train` alone trains on all of it; with `split`, its documents are divided; or `valid` and
    `test` name files of their own.
    """

    train: str | tuple[BlendSource, ...]
    """Prefix of the training data, or a list of `{prefix: P, weight: W}` to blend."""

    valid: str | tuple[BlendSource, ...] | None = None
    """Prefix or list for validation, each read once; not together with `split`."""

    test: str | tuple[BlendSource, ...] | None = None
    """Prefix or list for the final test, each read once; not together with `split`."""

    split: str | None = None
    """Weights of train, validation and test documents of `train`, such as "969,30,1"."""

    seq_length: int = 2048
    """Tokens per sample."""

    reset_position_ids: bool = False
    """Pretraining: positions restart at 0 after each end of document within a sample."""

    reset_attention_at_eod: bool = False
    """Pretraining: tokens attend only to their own document."""

    eod_mask_loss: bool = False
    """Pretraining: no loss on the token after an end of document, which cannot be predicted."""

    overlong: Overlong = "error"
    """Conversations longer than `seq_length`: `error`, `drop`, or `truncate` after the last answer
    that fits. The run reports at its start how many are affected."""

    allow_other_template: bool = False
    """SFT, reward and DPO: train even if data, or the loaded checkpoint, were made with different
    chat templates; checkpoints then store the template of the first prefix of `train`."""

    verify: Literal["once", "always", "size"] = "once"
    """Before the first step, files are compared with the hashes in their sidecars. `once`: until
    this run has verified them and their size, mtime, ctime and inode stay; `always`: at every
    start, which also finds what a disk corrupts; `size`: only their sizes."""

    prefetch: int = 2
    """Steps to read ahead in a thread; 0 reads samples when they are needed."""

    def __post_init__(self) -> None:
        """Checks everything that needs no file.

        Raises:
            ConfigError: A value is out of range or two fields contradict each other.
        """
        if self.seq_length < 1:
            raise ConfigError(f"data.seq_length is {self.seq_length}; it must be at least 1.")
        if not 0 <= self.prefetch <= MAX_PREFETCH:
            raise ConfigError(
                f"data.prefetch is {self.prefetch}; it must be from 0 to "
                f"{MAX_PREFETCH}: what is read ahead is held in memory."
            )
        if self.verify not in VERIFY:
            raise ConfigError(
                f"data.verify is {self.verify!r}; it must be one of {', '.join(VERIFY)}."
            )
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
    """Everything that determines the order of training samples, as JSON values: content and weights
    of the files, split, seq_length, seed and options that change samples. A resumed run requires
    it to be unchanged."""

    sources: tuple[str, ...] = ()
    """Short names of the prefixes of a blend, indexed by the `source` of a sample. Empty: there is
    only one prefix."""

    notes: tuple[str, ...] = ()
    """What was dropped and why, for the log."""

    renderings: tuple[tuple[str, Rendering | None], ...] = ()
    """How conversations became tokens, by prefix, named such as `data.train P`, training first;
    None for plain text or if unknown."""

    prefixes: tuple[tuple[str, Prefix], ...] = ()
    """Every prefix that is read, named by its setting, such as `data.train[0]`."""

    hashes: Mapping[str, str] = field(default_factory=dict)
    """Hash of each file, such as `data.train[0].bin`, as far as it is known."""


def build_datasets(
    config: DataConfig,
    *,
    stage: str,
    vocab_size: int,
    tokenizer_identity: str,
    eod_id: int,
    seed: int,
) -> Datasets:
    """Opens and checks all data of a run.

    Args:
        config: Which data.
        stage: The stage the data must have been preprocessed for: `pretrain`, `sft` or
            `preference`.
        vocab_size: True size of the model's vocabulary.
        tokenizer_identity: `Tokenizer.identity` of the run's tokenizer.
        eod_id: The id that ends documents in files without a sidecar.
        seed: Seed of the order of training samples.

    Raises:
        ConfigError: A file is missing, or was made for another stage or with another tokenizer; an
            option does not fit the stage; or the seed does not fit 64 bits.
        DataError: A file is damaged or too small, or has no supervised token.
    """
    _check_options(config, stage, seed)

    @functools.cache  # a split opens the same prefix three times
    def open_checked(name: str) -> Prefix:
        prefix = open_explained(name)
        check_stage(prefix, stage)
        check_tokenizer(prefix.indexed, vocab_size, tokenizer_identity)
        return prefix

    def make(name: str, part: str) -> SampleSource | None:
        prefix = open_checked(name)
        documents = _documents_of(config, prefix.indexed, PARTS.index(part))
        if documents is None:
            return None
        return _make_dataset(
            prefix, config, documents=documents, eod_id=eod_id, seed=seed, shuffle=part == "train"
        )

    given = {part: config.train if config.split else getattr(config, part) for part in PARTS}
    sources = {part: _as_sources(value) if value else () for part, value in given.items()}
    blended = [sources[part] for part in PARTS if len(sources[part]) > 1]
    names = list(dict.fromkeys(Path(source.prefix) for blend in blended for source in blend))
    parts = {part: _make_part(part, sources[part], make, names) for part in PARTS}
    train = parts["train"][0]
    assert train is not None, "the training part of a split has documents"
    return Datasets(
        train=train,
        valid=parts["valid"][0],
        test=parts["test"][0],
        order=_order(config, _content(sources["train"], open_checked), stage, seed),
        sources=_short_names(names),
        notes=_notes(made for _, datasets in parts.values() for made in datasets),
        renderings=_renderings(sources, open_checked),
        prefixes=tuple(_prefixes(config, sources, open_checked)),
    )


def _notes(datasets: Iterable[SampleSource]) -> tuple[str, ...]:
    return tuple(note for dataset in datasets for note in getattr(dataset, "notes", ()))


def _renderings(
    sources: Mapping[str, Sequence[BlendSource]], open_checked: Callable[[str], Prefix]
) -> tuple[tuple[str, Rendering | None], ...]:
    """The rendering of each prefix, named by the first part that reads it."""
    part_of: dict[str, str] = {}
    for part, blend in sources.items():
        for source in blend:
            part_of.setdefault(source.prefix, part)
    return tuple(
        (f"data.{part} {name}", open_checked(name).rendering) for name, part in part_of.items()
    )


def _prefixes(
    config: DataConfig,
    sources: Mapping[str, Sequence[BlendSource]],
    open_checked: Callable[[str], Prefix],
) -> Iterator[tuple[str, Prefix]]:
    """`Datasets.prefixes`; all parts of a split read those of `data.train`."""
    for part in ("train",) if config.split else PARTS:
        for index, source in enumerate(sources[part]):
            yield f"data.{part}[{index}]", open_checked(source.prefix)


def _check_options(config: DataConfig, stage: str, seed: int) -> None:
    """Refuses options without an effect, and a seed that does not fit 64 bits."""
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed is {seed}; it must be a number from 0 to 2^64 - 1.")
    at_eod = ("reset_position_ids", "reset_attention_at_eod", "eod_mask_loss")
    for name in at_eod if stage != "pretrain" else ():
        if getattr(config, name):
            raise ConfigError(
                f"data.{name} is for pretraining; the documents of {stage} data are always "
                "isolated. Remove it."
            )
    if stage == "pretrain" and config.overlong != "error":
        raise ConfigError(
            f"data.overlong is {config.overlong}, but pretraining joins documents of any "
            "length. Remove it."
        )


def _make_dataset(
    prefix: Prefix, config: DataConfig, *, eod_id: int, **common: Any
) -> PretrainDataset | SFTDataset | PreferenceDataset:
    common |= {"seq_length": config.seq_length}
    if prefix.stage == "pretrain":
        return PretrainDataset(prefix.indexed, at_eod=_at_eod(prefix, config, eod_id), **common)
    common |= {"overlong": config.overlong}
    assert prefix.targets is not None, f"{prefix.stage} data have targets"
    if prefix.stage == "sft":
        return SFTDataset(prefix.indexed, prefix.targets, **common)
    assert prefix.rankings is not None, "preference data have rankings"
    return PreferenceDataset(prefix.indexed, prefix.targets, prefix.rankings, **common)


def _at_eod(prefix: Prefix, config: DataConfig, eod_id: int) -> AtEod | None:
    sidecar = prefix.indexed.sidecar
    at_eod = AtEod(
        eod_id=eod_id if sidecar is None or sidecar.eod_id is None else sidecar.eod_id,
        reset_position_ids=config.reset_position_ids,
        reset_attention=config.reset_attention_at_eod,
        mask_loss=config.eod_mask_loss,
    )
    if at_eod.is_needed and sidecar is not None and sidecar.eod_id is None:
        raise ConfigError(
            f"data {prefix.name!r} was preprocessed with --no-append-eod, so the ends of its "
            "documents are unknown. Preprocess again without that flag, or remove "
            "data.reset_position_ids, data.reset_attention_at_eod and data.eod_mask_loss."
        )
    return at_eod


def _make_part(
    part: str,
    sources: tuple[BlendSource, ...],
    make: Callable[[str, str], SampleSource | None],
    names: list[Path],
) -> tuple[SampleSource | None, list[SampleSource]]:
    """The data set of a part, and those it is made of."""
    datasets = [dataset for source in sources if (dataset := make(source.prefix, part)) is not None]
    if len(datasets) < 2:
        return (datasets[0] if datasets else None), datasets
    numbers = [names.index(Path(source.prefix)) for source in sources]
    if part == "train":
        weights = [source.weight for source in sources]
        return BlendedDataset(datasets, weights, numbers=numbers), datasets
    return ConcatenatedDataset(datasets, numbers=numbers), datasets


def _short_names(prefixes: Sequence[Path]) -> tuple[str, ...]:
    """The last part of each path, or as many as make it unique."""
    names = []
    for prefix in prefixes:
        parts = prefix.parts
        others = [other.parts for other in prefixes if other != prefix]
        length = 1
        while length < len(parts) and any(o[-length:] == parts[-length:] for o in others):
            length += 1
        names.append(str(Path(*parts[-length:])))
    return tuple(names)


def _content(
    sources: Sequence[BlendSource], open_checked: Callable[[str], Prefix]
) -> list[list[Any]]:
    """Content and weight of each prefix."""
    return [[content_of(open_checked(s.prefix).indexed), s.weight] for s in sources]


def _order(config: DataConfig, content: list[list[Any]], stage: str, seed: int) -> dict[str, Any]:
    """`Datasets.order`, keyed by the names of the settings."""
    names = ("split", "seq_length", "reset_position_ids", "reset_attention_at_eod", "eod_mask_loss")
    return {
        "stage": stage,
        "data.train": content,
        **{f"data.{name}": getattr(config, name) for name in (*names, "overlong")},
        "training.seed": seed,
    }


def _documents_of(
    config: DataConfig, indexed: IndexedDataset, number: int
) -> tuple[int, int] | None:
    if config.split is None:
        return (0, indexed.num_documents)
    weights = parse_split(config.split)
    return split_documents(weights, indexed.num_documents, indexed.prefix)[number]


def _as_sources(value: str | tuple[BlendSource, ...]) -> tuple[BlendSource, ...]:
    return (BlendSource(prefix=value),) if isinstance(value, str) else tuple(value)
