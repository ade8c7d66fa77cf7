"""Token files for the tests of data and its tools."""

import json
import os
import re
from pathlib import Path

import numpy as np

from megatron_chimed.data.datasets.indexed import IndexedDataset
from megatron_chimed.data.datasets.sidecar import OWN_KEY, Sidecar
from megatron_chimed.data.preprocessing.writer import IndexedWriter

IDENTITY = "0" * 64


def describe(writer, bin_sha256, idx_sha256, **facts):
    """The sidecar of what a writer holds; `facts` replace fields."""
    fields = {
        "stage": writer.stage,
        "tokenizer_name": "test.model",
        "tokenizer_sha256": IDENTITY,
        "vocab_size": 1000,
        "eod_id": None,
        "max_token_id": writer.max_token_id,
        "dtype": writer.dtype.name,
        "sequences": writer.sequences,
        "documents": writer.documents,
        "tokens": writer.tokens,
        "bin_sha256": bin_sha256,
        "idx_sha256": idx_sha256,
        "sources": (),
        "command": "",
    }
    return Sidecar(**{**fields, **facts})


def write_prefix(prefix, documents, dtype=np.uint16, **facts):
    """Writes documents (lists of ids) with a sidecar whose fields `facts` may replace."""
    with IndexedWriter(prefix, dtype) as writer:
        for ids in documents:
            writer.add_document(ids)
        writer.finalize(lambda *sha256: describe(writer, *sha256, **facts))
    return Path(prefix)


def edit_sidecar(path, **facts):
    """Replaces fields of a sidecar, which then states no hash of itself, like those of 0.2."""
    value = {**json.loads(path.read_text()), **facts}
    value.pop(OWN_KEY, None)
    path.write_text(json.dumps(value))


def renamed(raw, old, new):
    """A file's content with another name in it, and without a sidecar's hash of itself."""
    own_hash = rb'"%s": "[0-9a-f]+"' % OWN_KEY.encode()
    return re.sub(own_hash, b"", raw.replace(os.fsencode(old), os.fsencode(new)))


def open_prefix(prefix, documents, dtype=np.uint16, **facts):
    """Writes and opens."""
    return IndexedDataset(write_prefix(prefix, documents, dtype, **facts))


def numbered_documents(lengths):
    """Documents of the given lengths whose ids are 0, 1, 2, ... over all of them."""
    ends = np.cumsum(lengths)
    return [list(range(end - length, end)) for length, end in zip(lengths, ends, strict=True)]
