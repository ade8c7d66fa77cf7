"""The texts of corpus files for a tokenizer, with the rules of preprocessing for malformed rows."""

import contextlib
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_chimed.data.formats.columns import column_map, refuse_beside_columns
from megatron_chimed.data.formats.example import example_text
from megatron_chimed.data.formats.format import ReadOptions
from megatron_chimed.data.formats.registry import AUTO
from megatron_chimed.data.formats.row import RowError
from megatron_chimed.data.preprocessing.quarantine import FileRows, Quarantine, check_bad_rate
from megatron_chimed.data.reading import (
    MAX_ROW_BYTES,
    BadRow,
    InputFile,
    examples_of,
    expand_inputs,
    format_of,
    iter_blocks,
)
from megatron_chimed.data.reading.encodings import UTF8, encoding_named
from megatron_chimed.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Files, and how their rows are read; as in `PreprocessConfig`."""

    inputs: tuple[str, ...]
    """Corpus files, folders and patterns, in order."""

    output_prefix: str
    """The malformed rows are listed in this path with `.quarantine.jsonl`."""

    format: str = AUTO
    """Name of the format, or `auto`."""

    text_key: str = "text"
    """Key of the text in rows of the format `text`."""

    columns: tuple[str, ...] = ()
    """What the columns are, as `role=column`."""

    encoding: str = UTF8
    """Encoding of the files."""

    ignore_keys: tuple[str, ...] = ()
    """Keys of rows that are read as if they were not there."""

    strict_keys: bool = False
    """Whether a key that nothing reads makes a row malformed."""

    max_bad_rate: float = 0.0
    """Share of rows that may be malformed and are then skipped."""

    max_row_bytes: int = MAX_ROW_BYTES
    """A longer row is malformed."""

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ConfigError: One is out of range.
        """
        check_bad_rate(self.max_bad_rate)
        encoding_named(self.encoding)
        if self.max_row_bytes < 1:
            raise ConfigError(f"--max-row-bytes is {self.max_row_bytes}; give at least 1.")
        if column_map(self.columns) is not None:
            refuse_beside_columns(self)


def corpus_texts(config: CorpusConfig, say: Callable[[str], None]) -> Iterator[str]:
    """The texts that are not blank, in order; a conversation is one text.

    Args:
        config: What to read.
        say: Called once all is read, if rows were skipped.

    Raises:
        ConfigError: A name matches no file, or there is no such format.
        DataError: More rows are malformed than allowed; raised once all are counted.
    """
    inputs = expand_inputs(
        config.inputs,
        text_key=config.text_key,
        encoding=config.encoding,
        column_map=column_map(config.columns),
        ignored_keys=config.ignore_keys,
    )
    with tempfile.TemporaryDirectory() as folder:
        quarantine = Quarantine(
            Path(folder), config.output_prefix, max_bad_rate=config.max_bad_rate
        )
        with contextlib.closing(quarantine):
            files = []
            for entry in inputs:
                files.append((yield from _file_texts(entry, config, quarantine)))
            quarantine.check_rate(files)
            if bad := sum(item.bad for item in files):
                say(f"{bad:,} malformed rows are listed in {quarantine.publish()}")


def _file_texts(
    entry: InputFile, config: CorpusConfig, quarantine: Quarantine
) -> Generator[str, None, FileRows]:
    """The texts of one file; returns the counts of its rows."""
    kind = format_of(entry, config.format, text_key=config.text_key)
    options = ReadOptions(text_key=config.text_key, strict_keys=config.strict_keys)
    file, bad, rows = str(entry.path), 0, 0
    for block in iter_blocks([entry], max_row_bytes=config.max_row_bytes):
        for row in block.oversized:
            quarantine.add(file, row)
            bad, rows = bad + 1, rows + 1
        for line, offset, examples in examples_of(block, entry, kind, options=options):
            rows += 1
            if isinstance(examples, RowError):
                quarantine.add(file, BadRow(line=line, offset=offset, reason=str(examples)))
                bad += 1
                continue
            yield from filter(str.strip, map(example_text, examples))
    return FileRows(file, bad, rows)
