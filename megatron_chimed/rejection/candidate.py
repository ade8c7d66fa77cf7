"""One answer to one prompt and all that a round finds out about it, kept in Parquet.

A file's bytes depend on the candidates alone, and its pages carry checksums. Memory beyond the
candidates themselves is that of one row group.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megatron_chimed.errors import DataError
from megatron_chimed.files import atomic_file

POLICY, REFERENCE = "policy", "reference"
GROUP_ROWS = 1 << 15

TOKENS = pa.list_(pa.field("element", pa.int32(), nullable=False))
SCHEMA = pa.schema(
    [
        pa.field("prompt", pa.int64(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("number", pa.int32(), nullable=False),
        pa.field("seed", pa.uint64()),
        pa.field("text", pa.string(), nullable=False),
        pa.field("token_ids", TOKENS, nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("finish_reason", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("decision", pa.string(), nullable=False),
        pa.field("log_prob", pa.float64()),
        pa.field("first_log_prob", pa.float64()),
        pa.field("question", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An answer, where it comes from, what it is worth and what became of it."""

    prompt: int
    """Place of the prompt in the list of prompts."""

    prompt_id: str
    """The prompt's id in its file."""

    category: str
    """The prompt's, "" where it has none."""

    source: str
    """POLICY, REFERENCE (the prompt file's own answer) or the name of an external source."""

    number: int
    """Tells candidates of one prompt and source from each other."""

    seed: int | None
    """Of the draw, below 2^64; None unless the source is POLICY."""

    text: str
    """The answer."""

    token_ids: tuple[int, ...]
    """Of a drawn answer the drawn tokens without the stop token; of others the text's tokens by the
    policy's tokenizer."""

    num_tokens: int
    """How many they are."""

    finish_reason: str | None
    """`stop` or `length` of a drawn answer, None of others."""

    score: float | None = None
    """The reward model's; None before scoring, and for an answer that it cannot take."""

    decision: str = ""
    """What selection decided (`selection.DECISIONS`), "" before."""

    log_prob: float | None = None
    """Natural logarithm of the answer's probability, end included, by the policy that drew it."""

    first_log_prob: float | None = None
    """The same by the policy before the first round, the SFT model."""

    question: str = ""
    """The prompt's last question, so that the file can be read by itself."""


def write_candidates(
    path: str | os.PathLike,
    candidates: Sequence[Candidate],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes candidates in their order, all or nothing; equal ones give equal bytes.

    Args:
        path: A Parquet file (zstd), replaced if it is there.
        candidates: May be empty.
        metadata: Goes to the schema's key-value metadata.
    """
    schema = SCHEMA.with_metadata(dict(metadata or {}))
    with (
        atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for begin in range(0, len(candidates), GROUP_ROWS):
            group = candidates[begin : begin + GROUP_ROWS]
            columns = [_column(group, field) for field in SCHEMA]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def read_candidates(path: str | os.PathLike) -> list[Candidate]:
    """Reads what `write_candidates` wrote.

    Raises:
        DataError: The file is missing, damaged or no file of candidates.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as reader:
            _require_schema(path, reader.schema_arrow)
            groups = (reader.read_row_group(n) for n in range(reader.num_row_groups))
            return [candidate for group in groups for candidate in _candidates(group)]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: no candidates. Check the path.") from None
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """What was given to `write_candidates` as metadata.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        stored = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None
    return {key.decode(): value.decode() for key, value in stored.items()}


def _damaged(path: str | os.PathLike, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be read as candidates ({error}). It is damaged or was cut off: remove it, "
        "and the round makes it again."
    )


def _column(group: Sequence[Candidate], field: pa.Field) -> pa.Array:
    if field.name != "token_ids":
        return pa.array([getattr(item, field.name) for item in group], field.type)
    lengths = [len(item.token_ids) for item in group]
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    assert offsets[-1] < 1 << 31, f"{offsets[-1]} tokens in a group: lower GROUP_ROWS"
    tokens = chain.from_iterable(item.token_ids for item in group)
    values = np.fromiter(tokens, np.int32, count=offsets[-1])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values), type=TOKENS)


def _candidates(group: pa.Table) -> Iterator[Candidate]:
    columns = [_values(group.column(field.name), field) for field in SCHEMA]
    names = SCHEMA.names
    for row in zip(*columns, strict=True):
        yield Candidate(**dict(zip(names, row, strict=True)))


def _values(column: pa.ChunkedArray, field: pa.Field) -> list[Any]:
    if field.name != "token_ids":
        return column.to_pylist()
    rows: list[tuple[int, ...]] = []
    for part in column.chunks:
        offsets, values = part.offsets.to_pylist(), part.values.to_numpy()
        bounds = zip(offsets, offsets[1:], strict=False)
        rows += [tuple(values[begin:end].tolist()) for begin, end in bounds]
    return rows


def _require_schema(path: str | os.PathLike, found: pa.Schema) -> None:
    if found.equals(SCHEMA):
        return
    differing = [field.name for field in SCHEMA if field not in list(found)]
    differing += [name for name in found.names if name not in SCHEMA.names]
    raise DataError(
        f"{path} is no file of candidates of this version: its columns differ in "
        f"{', '.join(differing) or 'their order'}. Name a candidates.parquet of a round."
    )


assert SCHEMA.names == [field.name for field in fields(Candidate)], "a column for every field"
