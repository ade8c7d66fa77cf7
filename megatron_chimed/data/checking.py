"""All that can be verified about a prefix by reading it once: what opening it leaves out."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from megatron_chimed.data.indexed import IndexedDataset
from megatron_chimed.data.sidecar import Sidecar
from megatron_chimed.files import sha256_file
from megatron_chimed.tokenizer import Tokenizer

SCAN_TOKENS = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was verified."""

    what: str
    """The property."""

    is_good: bool
    """Whether it holds."""

    detail: str
    """What was found, with the place of the first fault."""


def check_dataset(indexed: IndexedDataset, tokenizer: Tokenizer | None = None) -> list[Finding]:
    """Verifies hashes, ids, document ends, sources and the tokenizer's identity.

    Args:
        indexed: An open prefix: its header, index and sizes are good already.
        tokenizer: The one that should have made it, or None.
    """
    sidecar = indexed.sidecar
    index = f"{len(indexed)} sequences, {indexed.num_documents} documents, {indexed.dtype.name}"
    findings = [Finding(what="index", is_good=True, detail=index)]
    if sidecar is None:
        detail = "none: a stock Megatron file; hashes and origin cannot be verified"
        findings.append(Finding(what="sidecar", is_good=True, detail=detail))
    else:
        findings += _check_hashes(indexed, sidecar)
        findings.append(_check_sources(indexed, sidecar))
        if tokenizer is not None:
            findings.append(_check_identity(sidecar, tokenizer))
    findings.append(_check_range(indexed, tokenizer))
    findings += _check_ends(indexed, tokenizer)
    return findings


def _check_hashes(indexed: IndexedDataset, sidecar: Sidecar) -> Iterator[Finding]:
    pairs = ((indexed.bin_path, sidecar.bin_sha256), (indexed.idx_path, sidecar.idx_sha256))
    for path, stated in pairs:
        found = sha256_file(path)
        detail = found if found == stated else f"{found}, but the sidecar states {stated}"
        yield Finding(what=f"sha256 of {path.name}", is_good=found == stated, detail=detail)


def _check_sources(indexed: IndexedDataset, sidecar: Sidecar) -> Finding:
    borders = [0]
    for source in sidecar.sources:
        is_next = source.documents[0] == borders[-1] <= source.documents[1]
        if not is_next:
            detail = f"{source.file} holds documents {source.documents}, not from {borders[-1]} on"
            return Finding(what="sources", is_good=False, detail=detail)
        borders.append(source.documents[1])
    detail = f"{len(sidecar.sources)} files cover documents 0 to {borders[-1]}"
    is_good = borders[-1] == indexed.num_documents
    return Finding(what="sources", is_good=is_good, detail=detail)


def _check_identity(sidecar: Sidecar, tokenizer: Tokenizer) -> Finding:
    is_good = sidecar.tokenizer_sha256 == tokenizer.identity
    detail = f"{tokenizer.identity}"
    if not is_good:
        detail += f", but the data was made with {sidecar.tokenizer_sha256}"
    return Finding(what="tokenizer", is_good=is_good, detail=detail)


def _check_range(indexed: IndexedDataset, tokenizer: Tokenizer | None) -> Finding:
    """Every id against the vocabulary, and the largest against what the sidecar states."""
    sidecar = indexed.sidecar
    vocab_size = sidecar.vocab_size if sidecar is not None else None
    if tokenizer is not None:
        vocab_size = tokenizer.vocab_size
    limit = np.iinfo(np.int64).max if vocab_size is None else vocab_size
    largest = -1
    for start in range(0, len(indexed.tokens), SCAN_TOKENS):
        block = indexed.tokens[start : start + SCAN_TOKENS]
        largest = max(largest, int(block.max()))
        if int(block.min()) < 0 or int(block.max()) >= limit:
            wrong = start + int(np.argmax((block < 0) | (block >= limit)))
            detail = (
                f"document {_document_of(indexed, wrong)}: id {int(indexed.tokens[wrong])} at "
                f"token {wrong} is outside the vocabulary of {vocab_size}"
            )
            return Finding(what="token ids", is_good=False, detail=detail)
    if sidecar is not None and sidecar.max_token_id != largest:
        detail = f"the largest is {largest}, but the sidecar states {sidecar.max_token_id}"
        return Finding(what="token ids", is_good=False, detail=detail)
    known = "unknown vocabulary" if vocab_size is None else f"vocabulary {vocab_size}"
    detail = f"{len(indexed.tokens)} tokens, largest id {largest}, {known}"
    return Finding(what="token ids", is_good=True, detail=detail)


def _check_ends(indexed: IndexedDataset, tokenizer: Tokenizer | None) -> Iterator[Finding]:
    """Counts end-of-document ids. They are demanded only where the sidecar promises them."""
    sidecar = indexed.sidecar
    promised = sidecar.eod_id if sidecar is not None else None
    eod_id = tokenizer.eos_id if promised is None and tokenizer is not None else promised
    if eod_id is None:
        return
    lengths = indexed.document_lengths(0, indexed.num_documents)
    ends = np.cumsum(lengths, dtype=np.int64)
    is_ended = np.zeros(len(lengths), bool)
    is_ended[lengths > 0] = indexed.tokens[ends[lengths > 0] - 1] == eod_id
    total = sum(
        int(np.count_nonzero(indexed.tokens[start : start + SCAN_TOKENS] == eod_id))
        for start in range(0, len(indexed.tokens), SCAN_TOKENS)
    )
    ended = int(np.count_nonzero(is_ended))
    detail = (
        f"id {eod_id} ends {ended} of {indexed.num_documents} documents and stands "
        f"{total - ended} times within one"
    )
    is_good = promised is None or (ended == indexed.num_documents and total == ended)
    if not is_good and ended < indexed.num_documents:
        detail += f"; document {int(np.argmin(is_ended))} is the first without"
    yield Finding(what="end of document", is_good=is_good, detail=detail)


def _document_of(indexed: IndexedDataset, token: int) -> int:
    ends = np.cumsum(indexed.document_lengths(0, indexed.num_documents), dtype=np.int64)
    return int(np.searchsorted(ends, token, side="right"))
