"""Small corpora for the tests of reading: the same rows in every container."""

import csv
import gzip
import io
import json

import zstandard

from megatron_chimed.data.formats.row import RowError
from megatron_chimed.data.reading import expand_inputs, iter_blocks, rows_of

ROWS = [
    {"question": "发热\n怎么办？", "answer": 'a "quoted" 答案, 39.5℃'},
    {"question": "]},{[", "answer": '\\ " \\" \t'},
    {"question": "二", "answer": "𠀀 ≥ 3 μg"},
]


def dump(rows, **options):
    return json.dumps(rows, ensure_ascii=False, **options).encode()


def table(rows, delimiter):
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def parquet(rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


CONTAINERS = {
    "jsonl": lambda rows: b"".join(dump(row) + b"\n" for row in rows),
    "values": lambda rows: b"\n".join(dump(row, indent=2) for row in rows),
    "array": lambda rows: dump(rows, indent=1),
    "keyed": lambda rows: dump({"一": rows[:1], "none": [], "二": rows[1:]}),
    "csv": lambda rows: table(rows, ","),
    "tsv": lambda rows: table(rows, "\t"),
    "parquet": parquet,
}

COMPRESSIONS = {
    "": bytes,
    "gz": gzip.compress,
    "zst": zstandard.ZstdCompressor().compress,
}


def read(path, **options):
    """Rows as (line, byte, row), bad ones with their reason instead of the row."""
    [entry] = expand_inputs([path])
    found = []
    for block in iter_blocks([entry], **options):
        found += [(bad.line, bad.offset, bad.reason) for bad in block.oversized]
        for line, offset, row in rows_of(block, entry):
            found.append((line, offset, str(row) if isinstance(row, RowError) else row))
    return found


def write(path, content):
    path.write_bytes(content)
    return path
