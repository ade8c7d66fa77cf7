"""Reads Parquet files in batches of rows, which workers receive as Arrow streams.

Imported only for such files: pyarrow takes longer to load than everything else in `reading`.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_chimed.data.formats.row import RowError
from megatron_chimed.data.reading import row_block
from megatron_chimed.data.reading.row_block import BadRow, RowBlock, oversized_reason
from megatron_chimed.errors import DataError

MAX_BATCH_ROWS = 1 << 10  # dictionary encoding makes rows look smaller than they are


def parquet_blocks(path: Path, *, file: int, max_row_bytes: int) -> Iterator[RowBlock]:
    """The rows of a Parquet file in batches of about the size of a block.

    Memory: one batch, and the compressed columns of a row group that the reader holds. A batch with
    a row longer than `max_row_bytes` is cut around that row once it is in memory.

    Raises:
        DataError: The file is damaged.
    """
    try:
        with pq.ParquetFile(path, buffer_size=row_block.BLOCK_BYTES, pre_buffer=False) as reader:
            size, rows = path.stat().st_size, reader.metadata.num_rows
            first, number = 0, 0
            for batch in reader.iter_batches(batch_size=_batch_rows(reader.metadata)):
                for piece, oversized in _pieces(batch, max_row_bytes):
                    bad = [_bad_row(first, oversized, max_row_bytes)] if oversized else []
                    yield RowBlock(
                        file=file,
                        number=number,
                        first_line=first + 1,
                        offset=first,
                        data=b"" if oversized else _serialise(piece),
                        position=size * (first + len(piece)) // rows,
                        max_row_bytes=max_row_bytes,
                        oversized=tuple(bad),
                    )
                    first, number = first + len(piece), number + 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: the Parquet file is damaged ({error}). Replace it.") from None


def parquet_rows(block: RowBlock) -> Iterator[tuple[int, int, dict[str, Any] | RowError]]:
    """The rows of a block of a Parquet file."""
    with pa.ipc.open_stream(block.take()) as stream:
        for batch in stream:
            for place, row in enumerate(_rows(batch)):
                is_bad = isinstance(row, dict) and _has_nul(row)
                checked = RowError("NUL character in the text") if is_bad else row
                yield block.first_line + place, block.offset + place, checked


def _batch_rows(metadata: pq.FileMetaData) -> int:
    groups = range(metadata.num_row_groups)
    size = sum(metadata.row_group(group).total_byte_size for group in groups)
    rows = max(metadata.num_rows, 1)
    return max(1, min(MAX_BATCH_ROWS, math.ceil(row_block.BLOCK_BYTES * rows / max(size, 1))))


def _pieces(batch: pa.RecordBatch, limit: int) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Parts of a batch, each with 0, or a single oversized row with its size."""
    if batch.nbytes <= limit:
        yield batch, 0
        return
    begin = 0
    for place in range(len(batch)):
        size = batch.slice(place, 1).nbytes
        if size > limit:
            if place > begin:
                yield batch.slice(begin, place - begin), 0
            yield batch.slice(place, 1), size
            begin = place + 1
    if begin < len(batch):
        yield batch.slice(begin), 0


def _bad_row(place: int, size: int, limit: int) -> BadRow:
    return BadRow(line=place + 1, offset=place, reason=oversized_reason(size, limit))


def _serialise(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any] | RowError]:
    try:
        return batch.cast(_readable_schema(batch.schema)).to_pylist()
    except (ValueError, OverflowError, pa.ArrowException) as error:
        if len(batch) == 1:
            is_text = isinstance(error, UnicodeDecodeError)
            what = "invalid UTF-8" if is_text else f"a value that cannot be read ({error})"
            return [RowError(f"{what} in the row")]
        middle = len(batch) // 2
        return _rows(batch.slice(0, middle)) + _rows(batch.slice(middle))


def _readable_schema(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_type(_readable(field.type)) for field in schema])


def _readable(kind: pa.DataType) -> pa.DataType:
    """The type, with text in place of numbers and times that Python may be unable to represent."""
    types = pa.types
    if types.is_decimal(kind) or (types.is_temporal(kind) and not types.is_interval(kind)):
        return pa.string()
    if types.is_dictionary(kind):
        return _readable(kind.value_type)
    if types.is_struct(kind):
        return pa.struct([field.with_type(_readable(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(_readable(kind.key_type), _readable(kind.item_type))
    if types.is_fixed_size_list(kind):
        return pa.list_(_readable(kind.value_type), kind.list_size)
    if types.is_large_list(kind):
        return pa.large_list(_readable(kind.value_type))
    return pa.list_(_readable(kind.value_type)) if types.is_list(kind) else kind


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\x00" in value
    if isinstance(value, dict):
        return any(map(_has_nul, value.values()))
    return isinstance(value, list) and any(map(_has_nul, value))
