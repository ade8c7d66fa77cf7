"""All that can be verified about a prefix: its files, its index, its tokens, their origin.

Nothing stops at the first fault: what can still be verified after it is.
"""

import os
from collections.abc import Iterator, Sequence

from megatron_chimed.data.datasets.indexed import IndexedDataset, file_paths
from megatron_chimed.data.datasets.prefix import Prefix, open_prefix
from megatron_chimed.data.datasets.sidecar import Sidecar, Source, read_sidecar
from megatron_chimed.data.inspection.contents import Contents, PartCounts, read_contents
from megatron_chimed.data.inspection.finding import Finding, judge, unknown
from megatron_chimed.data.inspection.ranked import check_rankings
from megatron_chimed.data.inspection.scan import misplaced_source, parts_of
from megatron_chimed.data.preprocessing.writer import (
    QUARANTINE,
    SIDECAR,
    SUFFIXES,
    existing_outputs,
    output_path,
)
from megatron_chimed.errors import ConfigError, DataError, short_hashes
from megatron_chimed.files import sha256_file
from megatron_chimed.tokenizer import Tokenizer, load_tokenizer


def check_prefix(name: str, tokenizer_path: str | None = None) -> list[Finding]:
    """Verifies everything; reads each file about twice.

    Args:
        name: The prefix.
        tokenizer_path: Of the tokenizer that should have made it; None: the one that the sidecar
            names, if it is still there.

    Raises:
        ConfigError: There is no such prefix, or no tokenizer at that path.
    """
    if not existing_outputs(name):
        raise ConfigError(
            f"{name!r} is no prefix: there is neither {name}.idx nor {name}.ranked.idx. Give the "
            "path without .bin and .idx, as --output-prefix of tools/preprocess_data.py had it."
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
            return None, [judge("sidecar", False, detail)]
        detail = "none, as stock Megatron files have none: hashes and origin are not known"
        return None, [unknown("sidecar", detail)]
    try:
        sidecar = read_sidecar(path)
    except DataError as error:
        return None, [judge("sidecar", False, str(error))]
    detail = f"{sidecar.stage} data, made by: {sidecar.command or 'unknown'}"
    return sidecar, [judge("sidecar", sidecar.stage in SUFFIXES, detail)]


def _find_tokenizer(
    sidecar: Sidecar | None, path: str | None
) -> tuple[Tokenizer | None, list[Finding]]:
    """The tokenizer to compare with, None where it is none of the data's."""
    name = path or (sidecar.tokenizer_name if sidecar is not None else None)
    if name is None or (path is None and not os.path.exists(name)):
        gone = "" if name is None else f"{name} is gone; "
        return None, [unknown("tokenizer", f"{gone}give one with --tokenizer PATH")]
    try:
        tokenizer = load_tokenizer(name)
    except (ConfigError, DataError) as error:
        if path is not None:
            raise
        return None, [judge("tokenizer", False, str(error))]
    if sidecar is None:
        return tokenizer, [unknown("tokenizer", f"{name}; the files do not say which made them")]
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
    return (None if wrong else tokenizer), [judge("tokenizer", not wrong, f"{name}: {detail}")]


def _check_hashes(name: str, sidecar: Sidecar) -> Iterator[Finding]:
    suffixes = SUFFIXES.get(sidecar.stage, SUFFIXES["pretrain"])
    tokens, index = suffixes[1], suffixes[-1]
    stated = {tokens: sidecar.bin_sha256, index: sidecar.idx_sha256, **sidecar.more_sha256}
    for suffix in suffixes:
        if suffix in (QUARANTINE, SIDECAR):
            continue
        path, sha256 = output_path(name, suffix), stated.get(suffix)
        found = sha256_file(path) if path.is_file() else "the file is missing"
        detail = found if found == sha256 else f"{found}, but the sidecar states {sha256}"
        detail = short_hashes(detail)
        yield judge(f"sha256 of {path.name}", found == sha256, detail)
    if unheard := set(stated).difference(suffixes):
        detail = f"the sidecar names files that {sidecar.stage} data do not have: {sorted(unheard)}"
        yield judge("files", False, detail)


def _open(name: str, sidecar: Sidecar | None) -> tuple[Prefix | None, list[Finding]]:
    """Opens all files, or else the token files alone, which checks every entry of the index."""
    try:
        prefix = open_prefix(name)
    except (ConfigError, DataError, FileNotFoundError) as error:
        findings = [judge("index", False, str(error))]
    else:
        return prefix, [judge("index", True, describe(prefix.indexed))]
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
    """Type and sizes of an index."""
    return (
        f"{indexed.dtype.name}, {len(indexed)} sequences, {indexed.num_documents} documents, "
        f"{len(indexed.tokens)} tokens"
    )


def _check_tokens(prefix: Prefix, tokenizer: Tokenizer | None) -> Iterator[Finding]:
    indexed, sidecar = prefix.indexed, prefix.indexed.sidecar
    if indexed.dtype.kind not in "iu":
        yield judge("token ids", False, f"{indexed.dtype.name} elements are no token ids")
        return
    end_id = sidecar.eod_id if sidecar is not None else None
    if end_id is None and tokenizer is not None:
        end_id = tokenizer.eos_id
    known = tokenizer or sidecar
    vocab_size = known.vocab_size if known is not None else None
    parts = parts_of(indexed)
    contents = read_contents(prefix, parts, vocab_size=vocab_size, end_id=end_id)
    yield _check_ids(contents, sidecar, vocab_size)
    if prefix.stage == "pretrain":
        yield _check_ends(contents, sidecar, end_id, indexed.num_documents)
    if prefix.targets is not None:
        yield from _check_targets(prefix, contents, end_id)
    if sidecar is not None:
        yield _check_sources(sidecar)
        if len(parts) == len(sidecar.sources):
            yield _check_counts(sidecar.sources, contents.parts, has_end=end_id is not None)
    if prefix.rankings is not None:
        yield from check_rankings(prefix, parts)


def _check_ids(contents: Contents, sidecar: Sidecar | None, vocab_size: int | None) -> Finding:
    known = "no vocabulary known" if vocab_size is None else f"vocabulary {vocab_size}"
    outside = contents.outside
    if outside.count:
        detail = f"{outside.count} ids are outside the vocabulary of {vocab_size}: {outside.first}"
        return judge("token ids", False, detail)
    detail = f"{contents.smallest_id} to {contents.largest_id}, {known}"
    if sidecar is not None and sidecar.max_token_id != contents.largest_id:
        detail += f", but the sidecar states {sidecar.max_token_id} as the largest"
        return judge("token ids", False, detail)
    return judge("token ids", True, detail)


def _check_ends(
    contents: Contents, sidecar: Sidecar | None, end_id: int | None, documents: int
) -> Finding:
    """They are demanded only where the sidecar promises them."""
    if end_id is None:
        return unknown("ends of documents", "the id that ends documents is not known")
    ended = documents - contents.endless.count
    stray = contents.ends - ended
    detail = f"id {end_id} ends {ended} of {documents} documents and stands {stray} times elsewhere"
    if sidecar is None or sidecar.eod_id is None:
        return unknown("ends of documents", f"{detail}; none was promised")
    if contents.endless.count:
        detail += f"; {contents.endless.first} is the first without"
    return judge("ends of documents", not stray and not contents.endless.count, detail)


def _check_targets(prefix: Prefix, contents: Contents, end_id: int | None) -> Iterator[Finding]:
    wrong = contents.not_binary
    detail = f"one entry per token; {wrong.count} are neither 0 nor 1"
    yield judge("mask", not wrong.count, f"{detail}: {wrong.first}" if wrong.count else detail)
    wrong, total = contents.unsupervised, len(prefix.indexed)
    supervised = sum(part.supervised_tokens for part in contents.parts)
    share = supervised / max(len(prefix.indexed.tokens), 1)
    detail = f"{supervised} tokens ({share:.1%}) in {total - wrong.count} of {total} sequences"
    if wrong.count:
        detail += f"; nothing is learned of {wrong.first}"
    yield judge("supervised tokens", not wrong.count, detail)
    found, sidecar = sum(part.end_tokens for part in contents.parts), prefix.indexed.sidecar
    if end_id is None:
        yield unknown("supervised ends", "the id that ends answers is not known")
    else:
        stated = sidecar.end_tokens
        detail = f"{found} tokens with id {end_id}, the sidecar states {stated}"
        yield judge("supervised ends", found == stated, detail)


def _check_sources(sidecar: Sidecar) -> Finding:
    if not sidecar.sources:
        return unknown("sources", "the sidecar names none")
    ranges = [source.documents for source in sidecar.sources]
    wrong = misplaced_source(ranges, sidecar.documents)
    if wrong is None:
        detail = f"{len(ranges)} files cover documents 0 to {sidecar.documents}"
        return judge("sources", True, detail)
    if wrong == len(ranges):
        detail = f"{len(ranges)} files cover documents 0 to {ranges[-1][1]} of {sidecar.documents}"
        return judge("sources", False, detail)
    expected = ranges[wrong - 1][1] if wrong else 0
    detail = (
        f"{sidecar.sources[wrong].file} holds documents {ranges[wrong]}, not from {expected} on"
    )
    return judge("sources", False, detail)


def _check_counts(
    sources: Sequence[Source], parts: Sequence[PartCounts], *, has_end: bool
) -> Finding:
    """What the sidecar counts of each source against itself and against its tokens."""
    for source, part in zip(sources, parts, strict=True):
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
                detail = f"{source.file}: {name} is {stated}, but there are {counted}"
                return judge("counts", False, detail)
    rows, quarantined = sum(s.rows for s in sources), sum(s.quarantined for s in sources)
    examples = sum(source.examples for source in sources)
    detail = f"{rows} rows, {quarantined} malformed, {examples} examples: all accounted for"
    return judge("counts", True, detail)
