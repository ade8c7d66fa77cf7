"""Verifies everything that can be verified about a prefix: files, index, tokens and origin.

Verification does not stop at the first fault.
"""

import os
from collections.abc import Iterator, Sequence

from megatron_chimed.data.datasets.indexed import IndexedDataset, file_paths
from megatron_chimed.data.datasets.prefix import Prefix, open_prefix
from megatron_chimed.data.datasets.sidecar import Sidecar, SourceSummary, read_sidecar
from megatron_chimed.data.inspection.findings import Finding, checked, unchecked
from megatron_chimed.data.inspection.ranking_verification import check_rankings
from megatron_chimed.data.inspection.token_blocks import document_ranges, misplaced_source
from megatron_chimed.data.inspection.token_counts import RangeCounts, TokenCounts, count_tokens
from megatron_chimed.data.preprocessing.writer import (
    QUARANTINE,
    SIDECAR,
    SUFFIXES,
    existing_outputs,
    output_path,
)
from megatron_chimed.data.templates import ALL_TEMPLATES
from megatron_chimed.errors import ConfigError, DataError, short_hashes
from megatron_chimed.files import sha256_file
from megatron_chimed.tokenizer import Tokenizer, load_tokenizer


def verify_prefix(name: str, tokenizer_path: str | None = None) -> list[Finding]:
    """Verifies everything; reads each file about twice.

    Args:
        name: The prefix.
        tokenizer_path: Path of the tokenizer that should have made it; None: the tokenizer named
            in the sidecar, if it still exists.

    Raises:
        ConfigError: The prefix or the tokenizer does not exist.
    """
    if not existing_outputs(name):
        raise ConfigError(
            f"{name!r} is not a prefix: there is neither {name}.idx nor {name}.ranked.idx. Give "
            "the path without .bin and .idx, as passed to --output-prefix of preprocess_data.py."
        )
    sidecar, findings = _check_sidecar(name)
    tokenizer, identity = _find_tokenizer(sidecar, tokenizer_path)
    if sidecar is not None:
        findings += _check_hashes(name, sidecar)
    prefix, opening = _open(name, sidecar)
    findings += [*opening, *identity]
    if prefix is not None:
        findings += _check_tokens(prefix, tokenizer)
    return findings


def _check_sidecar(name: str) -> tuple[Sidecar | None, list[Finding]]:
    path = file_paths(name)[2]
    if not path.exists():
        others = [p.name for p in existing_outputs(name) if p.suffix not in {".bin", ".idx"}]
        others += [p.name for p in existing_outputs(name) if ".mask" in p.suffixes]
        if others:
            detail = f"{path.name} is missing, but {others[0]} needs it"
            return None, [checked("sidecar", False, detail)]
        detail = "none, as for stock Megatron files: hashes and origin are unknown"
        return None, [unchecked("sidecar", detail)]
    try:
        sidecar = read_sidecar(path)
    except DataError as error:
        return None, [checked("sidecar", False, str(error))]
    detail = f"{sidecar.stage} data, made by: {sidecar.command or 'unknown'}"
    return sidecar, [checked("sidecar", sidecar.stage in SUFFIXES, detail)]


def _find_tokenizer(
    sidecar: Sidecar | None, path: str | None
) -> tuple[Tokenizer | None, list[Finding]]:
    """The tokenizer to compare with; None if it is unknown or not that of the data."""
    name = path or (sidecar.tokenizer_name if sidecar is not None else None)
    if name is None or (path is None and not os.path.exists(name)):
        gone = "" if name is None else f"{name} does not exist; "
        return None, [unchecked("tokenizer", f"{gone}give one with --tokenizer PATH")]
    try:
        tokenizer = load_tokenizer(name)
    except (ConfigError, DataError) as error:
        if path is not None:
            raise
        return None, [checked("tokenizer", False, str(error))]
    if sidecar is None:
        return tokenizer, [unchecked("tokenizer", f"{name}; the files do not name their tokenizer")]
    facts = {
        "sha256": (tokenizer.identity, sidecar.tokenizer_sha256),
        "vocabulary": (tokenizer.vocab_size, sidecar.vocab_size),
    }
    wrong = [
        f"{what} {found}, but the data was made with {stated}"
        for what, (found, stated) in facts.items()
        if found != stated
    ]
    detail = (
        "; ".join(wrong) or f"sha256 {tokenizer.identity[:12]}, vocabulary {tokenizer.vocab_size}"
    )
    return (None if wrong else tokenizer), [checked("tokenizer", not wrong, f"{name}: {detail}")]


def _check_hashes(name: str, sidecar: Sidecar) -> Iterator[Finding]:
    suffixes = SUFFIXES.get(sidecar.stage, SUFFIXES["pretrain"])
    stated = {**sidecar.stated_sha256(), **sidecar.more_sha256}
    for suffix in suffixes:
        if suffix in (QUARANTINE, SIDECAR):
            continue
        path, sha256 = output_path(name, suffix), stated.get(suffix)
        found = sha256_file(path) if path.is_file() else "the file is missing"
        detail = found if found == sha256 else f"{found}, but the sidecar states {sha256}"
        detail = short_hashes(detail)
        yield checked(f"sha256 of {path.name}", found == sha256, detail)
    if unknown_suffixes := set(stated).difference(suffixes):
        names = sorted(unknown_suffixes)
        detail = f"the sidecar names files that {sidecar.stage} data do not have: {names}"
        yield checked("files", False, detail)


def _open(name: str, sidecar: Sidecar | None) -> tuple[Prefix | None, list[Finding]]:
    """Opens all files, or else only the token files; either checks every entry of the index."""
    try:
        prefix = open_prefix(name)
    except (ConfigError, DataError, FileNotFoundError) as error:
        findings = [checked("index", False, str(error))]
    else:
        return prefix, [checked("index", True, describe(prefix.indexed))]
    if sidecar is None or sidecar.stage not in ("sft", "preference"):
        return None, findings
    try:
        is_ranked = sidecar.stage == "preference"
        path = f"{name}.ranked" if is_ranked else name
        indexed = IndexedDataset(path, sidecar_path=file_paths(name)[2])
    except (ConfigError, DataError):
        return None, findings
    return Prefix(name=name, stage=sidecar.stage, indexed=indexed), findings


def describe(indexed: IndexedDataset) -> str:
    """Element type and sizes of an index."""
    return (
        f"{indexed.dtype.name}, {len(indexed)} sequences, {indexed.num_documents} documents, "
        f"{len(indexed.tokens)} tokens"
    )


def _check_tokens(prefix: Prefix, tokenizer: Tokenizer | None) -> Iterator[Finding]:
    indexed, sidecar = prefix.indexed, prefix.indexed.sidecar
    if indexed.dtype.kind not in "iu":
        yield checked("token ids", False, f"{indexed.dtype.name} elements are not token ids")
        return
    end_id = sidecar.eod_id if sidecar is not None else None
    if end_id is None and tokenizer is not None:
        end_id = tokenizer.eod_id if prefix.stage == "pretrain" else _end_id(sidecar, tokenizer)
    known = tokenizer or sidecar
    vocab_size = known.vocab_size if known is not None else None
    ranges = document_ranges(indexed)
    counts = count_tokens(prefix, ranges, vocab_size=vocab_size, end_id=end_id)
    yield _check_ids(counts, sidecar, vocab_size)
    if prefix.stage == "pretrain":
        yield _check_ends(counts, sidecar, end_id, indexed.num_documents)
    if prefix.targets is not None:
        yield from _check_targets(prefix, counts, end_id)
    if sidecar is not None:
        yield _check_sources(sidecar)
        if len(ranges) == len(sidecar.sources):
            yield _check_counts(sidecar.sources, counts.ranges, has_end=end_id is not None)
    if prefix.rankings is not None:
        yield from check_rankings(prefix, ranges)


def _end_id(sidecar: Sidecar | None, tokenizer: Tokenizer) -> int:
    """What ends an answer in the template of the data, if it is known here."""
    made = sidecar.rendering if sidecar is not None else None
    template = ALL_TEMPLATES.get(made.template) if made is not None else None
    return tokenizer.eos_id if template is None else template.stop_ids(tokenizer)[0]


def _check_ids(counts: TokenCounts, sidecar: Sidecar | None, vocab_size: int | None) -> Finding:
    known = "unknown vocabulary" if vocab_size is None else f"vocabulary {vocab_size}"
    outside = counts.outside
    if outside.count:
        detail = f"{outside.count} ids are outside the vocabulary of {vocab_size}: {outside.first}"
        return checked("token ids", False, detail)
    detail = f"{counts.smallest_id} to {counts.largest_id}, {known}"
    if sidecar is not None and sidecar.max_token_id != counts.largest_id:
        detail += f", but the sidecar states {sidecar.max_token_id} as the largest"
        return checked("token ids", False, detail)
    return checked("token ids", True, detail)


def _check_ends(
    counts: TokenCounts, sidecar: Sidecar | None, end_id: int | None, documents: int
) -> Finding:
    """Ends are required only if the sidecar promises them."""
    if end_id is None:
        return unchecked("ends of documents", "the id that ends documents is unknown")
    ended = documents - counts.unended.count
    stray = counts.ends - ended
    detail = f"id {end_id} ends {ended} of {documents} documents and occurs {stray} times elsewhere"
    if sidecar is None or sidecar.eod_id is None:
        return unchecked("ends of documents", f"{detail}; the sidecar promises none")
    if counts.unended.count:
        detail += f"; {counts.unended.first} is the first without one"
    return checked("ends of documents", not stray and not counts.unended.count, detail)


def _check_targets(prefix: Prefix, counts: TokenCounts, end_id: int | None) -> Iterator[Finding]:
    wrong = counts.not_binary
    detail = f"one entry per token; {wrong.count} are neither 0 nor 1"
    yield checked("mask", not wrong.count, f"{detail}: {wrong.first}" if wrong.count else detail)
    wrong, total = counts.unsupervised, len(prefix.indexed)
    supervised = sum(part.supervised_tokens for part in counts.ranges)
    share = supervised / max(len(prefix.indexed.tokens), 1)
    detail = f"{supervised} tokens ({share:.1%}) in {total - wrong.count} of {total} sequences"
    if wrong.count:
        detail += f"; nothing is learned from {wrong.first}"
    yield checked("supervised tokens", not wrong.count, detail)
    found, sidecar = sum(part.end_tokens for part in counts.ranges), prefix.indexed.sidecar
    if end_id is None:
        yield unchecked("supervised ends", "the id that ends answers is unknown")
    else:
        assert sidecar is not None, "data with a mask have a sidecar"
        stated = sidecar.end_tokens
        detail = f"{found} tokens with id {end_id}, the sidecar states {stated}"
        yield checked("supervised ends", found == stated, detail)


def _check_sources(sidecar: Sidecar) -> Finding:
    if not sidecar.sources:
        return unchecked("sources", "the sidecar lists none")
    ranges = [source.documents for source in sidecar.sources]
    wrong = misplaced_source(ranges, sidecar.documents)
    if wrong is None:
        detail = f"{len(ranges)} files cover documents 0 to {sidecar.documents}"
        return checked("sources", True, detail)
    if wrong == len(ranges):
        detail = f"{len(ranges)} files cover documents 0 to {ranges[-1][1]} of {sidecar.documents}"
        return checked("sources", False, detail)
    expected = ranges[wrong - 1][1] if wrong else 0
    detail = f"{sidecar.sources[wrong].file} holds documents {ranges[wrong]}, not from {expected}"
    return checked("sources", False, detail)


def _check_counts(
    sources: Sequence[SourceSummary], ranges: Sequence[RangeCounts], *, has_end: bool
) -> Finding:
    """Compares the sidecar's counts of each source with each other and with its tokens."""
    for source, part in zip(sources, ranges, strict=True):
        documents = source.documents[1] - source.documents[0]
        accounted = documents + source.empty + sum(source.removed.values())
        found = {
            "examples": (source.examples, accounted),
            "tokens": (source.tokens, part.tokens),
            "supervised_tokens": (source.supervised_tokens, part.supervised_tokens),
            "end_tokens": (source.end_tokens, part.end_tokens if has_end else source.end_tokens),
        }
        for name, (stated, counted) in found.items():
            if stated != counted:
                detail = f"{source.file}: {name} is {stated}, but {counted} were counted"
                return checked("counts", False, detail)
    rows, quarantined = sum(s.rows for s in sources), sum(s.quarantined for s in sources)
    examples = sum(source.examples for source in sources)
    detail = f"{rows} rows, {quarantined} malformed, {examples} examples: all accounted for"
    return checked("counts", True, detail)
