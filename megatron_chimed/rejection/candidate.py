"""A candidate: one answer to one prompt, with its score and decision; stored in Parquet.

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
        pa.field("stop_id", pa.int32()),
    ]
)
EARLIER_SCHEMA = SCHEMA.remove(SCHEMA.get_field_index("stop_id"))
"""Of files that were written when every answer was taken to stop at the same token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An answer, its source, its score and the decision on it."""

    prompt: int
    """Index of the prompt in the list of prompts."""

    prompt_id: str
    """The prompt's id in its file."""

    category: str
    """The prompt's category, "" if it has none."""

    source: str
    """POLICY, REFERENCE (the prompt file's own answer) or the name of an external source."""

    number: int
    """Distinguishes candidates of the same prompt and source."""

    seed: int | None
    """Seed of the draw, below 2^64; None unless the source is POLICY."""

    text: str
    """The answer."""

    token_ids: tuple[int, ...]
    """The drawn tokens without the stop token; for other sources the text, encoded with the
    policy's tokenizer."""

    num_tokens: int
    """Length of `token_ids`."""

    finish_reason: str | None
    """`stop` or `length` for a drawn answer, None for others."""

    score: float | None = None
    """By the reward model; None before scoring, and for an answer that cannot be scored."""

    decision: str = ""
    """Of the selection (`selection.DECISIONS`); "" before it."""

    log_prob: float | None = None
    """Natural logarithm of the answer's probability, stop token included, under the policy that
    drew it."""

    first_log_prob: float | None = None
    """The same under the policy before the first round, the SFT model."""

    question: str = ""
    """The prompt's last question, so that the file is self-contained."""

    stop_id: int | None = None
    """The token at which a drawn answer stopped; None for others, and in files of earlier
    versions."""


def write_candidates(
    path: str | os.PathLike,
    candidates: Sequence[Candidate],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes candidates in their order, all or nothing; equal candidates give equal bytes.

    Args:
        path: A Parquet file (zstd); an existing one is replaced.
        candidates: May be empty.
        metadata: Stored as the schema's key-value metadata.
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
        DataError: The file is missing, damaged or not a file of candidates.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as reader:
            _require_schema(path, reader.schema_arrow)
            groups = (reader.read_row_group(n) for n in range(reader.num_row_groups))
            return [candidate for group in groups for candidate in _candidates(group)]
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist, so there are no candidates. Check the path."
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The metadata that was given to `write_candidates`.

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
        f"{path} cannot be read as candidates ({error}). It is damaged or truncated: remove it, "
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
    stored = [field for field in SCHEMA if field.name in group.column_names]
    columns = [_values(group.column(field.name), field) for field in stored]
    names = [field.name for field in stored]
    for row in zip(*columns, strict=True):
        yield Candidate(**dict(zip(names, row, strict=True)))


def _values(column: pa.ChunkedArray, field: pa.Field) -> list[Any]:
    if field.name != "token_ids":
        return column.to_pylist()
    rows: list[tuple[int, ...]] = []
    for chunk in column.chunks:
        offsets, values = chunk.offsets.to_pylist(), chunk.values.to_numpy()
        bounds = zip(offsets, offsets[1:], strict=False)
        rows += [tuple(values[begin:end].tolist()) for begin, end in bounds]
    return rows


def _require_schema(path: str | os.PathLike, found: pa.Schema) -> None:
    if found.equals(SCHEMA) or found.equals(EARLIER_SCHEMA):
        return
    differing = [field.name for field in SCHEMA if field not in list(found)]
    differing += [name for name in found.names if name not in SCHEMA.names]
    raise DataError(
        f"{path} is not a file of candidates of this version: its columns differ in "
        f"{', '.join(differing) or 'their order'}. Give the candidates.parquet of a round."
    )


assert SCHEMA.names == [field.name for field in fields(Candidate)], "a column for every field"
