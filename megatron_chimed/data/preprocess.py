"""Corpora to token files: the body of tools/preprocess_data.py.

Streaming, ordered, and with the same bytes out for any number of workers. Nothing appears under a
final name unless all of it is good.
"""

import contextlib
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from megatron_chimed.data.blocks import iter_blocks
from megatron_chimed.data.encoding import EncodedBlock, Recipe, encode_blocks
from megatron_chimed.data.formats.registry import AUTO, detect_format
from megatron_chimed.data.indexed import dtype_for_vocab
from megatron_chimed.data.quarantine import Quarantine
from megatron_chimed.data.sidecar import Sidecar, Source
from megatron_chimed.data.writer import IndexedWriter
from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.tokenizer import load_tokenizer

STAGES = ("pretrain",)


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """What tools/preprocess_data.py is told."""

    inputs: tuple[str, ...]
    """Corpus files, in order."""

    tokenizer: str
    """A tokenizer.model file or a Hugging Face folder that holds one."""

    output_prefix: str
    """Path of the output without `.bin` and `.idx`."""

    format: str = AUTO
    """One of `formats.registry.FORMATS`, or `auto` to look into each file."""

    stage: str = "pretrain"
    """What the tokens are for, one of `STAGES`."""

    text_key: str = "text"
    """Key of the text in JSON rows."""

    append_eod: bool = True
    """Whether each document ends with the tokenizer's end of sequence."""

    max_bad_rate: float = 0.0
    """Share of rows that may be malformed and are then put aside; 0: the first one is an error."""

    workers: int = 1
    """Processes that encode."""

    overwrite: bool = False
    """Replace existing output, once the new one is complete."""

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ConfigError: One is out of range or a file does not exist.
        """
        if self.stage not in STAGES:
            raise ConfigError(f"--stage {self.stage!r} is none of {', '.join(STAGES)}.")
        if self.workers < 1:
            raise ConfigError(f"--workers is {self.workers}; at least 1 process must work.")
        if not 0.0 <= self.max_bad_rate < 1.0:
            raise ConfigError(
                f"--max-bad-rate is {self.max_bad_rate}; give a share of rows from 0 (none) to "
                "below 1, such as 0.001."
            )
        if not self.inputs:
            raise ConfigError("--input names no file.")
        for name in self.inputs:
            if not Path(name).is_file():
                raise ConfigError(f"--input {name!r} is no file. Check the path.")

    def command(self) -> str:
        """The command of this run without what does not change its output."""
        words = ["tools/preprocess_data.py", "--input", *self.inputs]
        words += ["--tokenizer", self.tokenizer, "--output-prefix", self.output_prefix]
        words += ["--format", self.format, "--stage", self.stage, "--text-key", self.text_key]
        words += ["--append-eod" if self.append_eod else "--no-append-eod"]
        words += ["--max-bad-rate", str(self.max_bad_rate)]
        return shlex.join(words)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is."""

    bytes: int
    """Input bytes done."""

    total_bytes: int
    """Input bytes in all."""

    documents: int
    """Documents written."""

    tokens: int
    """Tokens written, end-of-document tokens included."""


def preprocess(
    config: PreprocessConfig, report: Callable[[Progress], None] = lambda progress: None
) -> Sidecar:
    """Tokenizes the inputs and writes `P.bin`, `P.idx` and `P.meta.json`.

    Args:
        config: What to do.
        report: Called after each block of about 1 MiB.

    Returns:
        The sidecar that was written.

    Raises:
        DataError: A malformed row, too many of them, or no document at all.
        OutputError: The output exists or cannot be written.
        ParallelError: A worker was killed.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    files = [Path(name) for name in config.inputs]
    recipe = Recipe(
        tokenizer=config.tokenizer,
        formats=tuple(detect_format(path, config.format) for path in files),
        text_key=config.text_key,
        append_eod=config.append_eod,
    )
    dtype = dtype_for_vocab(tokenizer.vocab_size)
    with (
        IndexedWriter(config.output_prefix, dtype, overwrite=config.overwrite) as writer,
        Quarantine(config.output_prefix, config.max_bad_rate) as quarantine,
        contextlib.closing(encode_blocks(iter_blocks(files), recipe, config.workers)) as encoded,
    ):
        tallies = _write(encoded, files, writer, quarantine, report)
        quarantine.judge(sum(tally.rows for tally in tallies))
        if writer.documents == 0:
            raise DataError(
                f"no document in {', '.join(config.inputs)}: every line is blank or empty."
            )
        return writer.finalize(
            lambda bin_sha256, idx_sha256: Sidecar(
                stage=config.stage,
                tokenizer_name=config.tokenizer,
                tokenizer_sha256=tokenizer.identity,
                vocab_size=tokenizer.vocab_size,
                eod_id=tokenizer.eos_id if config.append_eod else None,
                max_token_id=writer.max_token_id,
                dtype=dtype.name,
                sequences=writer.documents,
                documents=writer.documents,
                tokens=writer.tokens,
                bin_sha256=bin_sha256,
                idx_sha256=idx_sha256,
                sources=_sources(tallies),
                command=config.command(),
            )
        )


@dataclass(kw_only=True)
class _Tally:
    """Counts of one input file."""

    file: Path
    documents: int = 0
    rows: int = 0
    blank: int = 0
    empty: int = 0
    quarantined: int = 0


def _write(
    encoded: Iterable[EncodedBlock],
    files: list[Path],
    writer: IndexedWriter,
    quarantine: Quarantine,
    report: Callable[[Progress], None],
) -> list[_Tally]:
    tallies = [_Tally(file=path) for path in files]
    total_bytes = sum(path.stat().st_size for path in files)
    done = 0
    for block in encoded:
        tally = tallies[block.rows.file]
        for row in block.rows.bad:
            quarantine.add(tally.file, row)
        writer.add_documents(block.tokens, block.lengths)
        tally.documents += len(block.lengths)
        tally.rows += block.rows.rows
        tally.blank += block.rows.blank
        tally.empty += block.rows.empty
        tally.quarantined += len(block.rows.bad)
        done += block.rows.size
        report(
            Progress(
                bytes=done,
                total_bytes=total_bytes,
                documents=writer.documents,
                tokens=writer.tokens,
            )
        )
    return tallies


def _sources(tallies: Iterable[_Tally]) -> tuple[Source, ...]:
    sources: list[Source] = []
    first = 0
    for tally in tallies:
        sources.append(
            Source(
                file=str(tally.file),
                bytes=tally.file.stat().st_size,
                rows=tally.rows,
                documents=(first, first + tally.documents),
                blank=tally.blank,
                empty=tally.empty,
                quarantined=tally.quarantined,
            )
        )
        first += tally.documents
    return tuple(sources)
