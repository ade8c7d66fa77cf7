"""Views of documents and training samples: tokens, targets and loss mask by position."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from megatron_chimed.data.datasets.blend import SampleSource
from megatron_chimed.data.datasets.prefix import Prefix

NO_TARGET = -1
NO_GROUP = -1


@dataclass(frozen=True, kw_only=True)
class Section:
    """Tokens that attend to each other: a segment of a sample, or a sequence of a document.

    Entry `i` of each array belongs to position `i`: the input token and the one to predict.
    """

    caption: str
    """Heading."""

    tokens: np.ndarray
    """Integers `[n]`."""

    targets: np.ndarray
    """int64 `[n]`: the next token; `NO_TARGET` at the end."""

    learned: np.ndarray
    """float32 `[n]`: weight of the target in the loss, 0 if it is not learned."""

    positions: np.ndarray
    """int64 `[n]`: position ids of the model."""

    padding: int = 0
    """Number of padding tokens if the section is padding; the arrays are then empty."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A document or a sample."""

    title: str
    """Heading."""

    sections: tuple[Section, ...]
    """The sections in order."""


def view_document(prefix: Prefix, document: int) -> View:
    """A document as stored in the files; a ranking has one section per candidate."""
    indexed = prefix.indexed
    first, last = indexed.document_indices[document : document + 2].tolist()
    sections = []
    for sequence in range(first, last):
        start = int(indexed.pointers[sequence]) // indexed.dtype.itemsize
        length = int(indexed.lengths[sequence])
        learned = np.ones(length, np.float32)
        if prefix.targets is not None:
            learned[:-1] = prefix.targets[start : start + length][1:]
        learned[-1:] = 0  # the sequence ends here
        targets = np.full(length, NO_TARGET, np.int64)
        targets[:-1] = indexed.tokens[start : start + length][1:]
        sections.append(
            Section(
                caption=_caption_sequence(prefix, document, sequence, first),
                tokens=indexed.tokens[start : start + length],
                targets=targets,
                learned=learned,
                positions=np.arange(length),
            )
        )
    tokens = sum(len(section.tokens) for section in sections)
    title = f"document {document}: {tokens} tokens{_origin(prefix, document)}"
    return View(title=title, sections=tuple(sections))


def _caption_sequence(prefix: Prefix, document: int, sequence: int, first: int) -> str:
    count = int(prefix.indexed.lengths[sequence])
    if prefix.rankings is None:
        return f"sequence {sequence}, {count} tokens"
    return f"candidate {sequence - first}, {count} tokens, " + _merit(
        int(prefix.rankings.ranks[sequence]),
        float(prefix.rankings.margins[sequence]),
        int(prefix.rankings.prompt_lengths[document]),
    )


def _merit(rank: int, margin: float, prompt_length: int) -> str:
    given = f", margin {margin:g}" if margin else ""
    return f"rank {rank}{given}, prompt of {prompt_length} tokens"


def _origin(prefix: Prefix, document: int) -> str:
    """The source of a document, if the sidecar lists it."""
    sidecar = prefix.indexed.sidecar
    for source in sidecar.sources if sidecar is not None else ():
        if source.documents[0] <= document < source.documents[1]:
            return f", from {source.file}"
    return ""


def view_sample(dataset: SampleSource, index: int) -> View:
    """A sample exactly as training reads it, with one section per segment."""
    sample = dataset[index]
    ids = sample.get("segment_ids")
    if ids is None:
        ids = np.zeros(len(sample["tokens"]), np.int32)
    borders = [0, *(np.flatnonzero(np.diff(ids)) + 1).tolist(), len(ids)]
    sections = [
        _section(sample, first, last, int(ids[first]))
        for first, last in zip(borders[:-1], borders[1:], strict=True)
    ]
    title = f"sample {index} ({dataset.samples_per_epoch} per epoch): {dataset.locate(index)}"
    return View(title=title, sections=tuple(sections))


def _section(sample: dict[str, np.ndarray], first: int, last: int, segment: int) -> Section:
    here = slice(first, last)
    length = last - first
    if is_padding(sample, here):
        empty = np.empty(0, np.int64)
        return Section(
            caption=f"padding, {length} tokens",
            **dict.fromkeys(("tokens", "targets", "learned", "positions"), empty),
            padding=length,
        )
    caption = f"segment {segment}, {length} tokens"
    if "group_ids" in sample:
        end = last - 1
        merit = _merit(
            *(sample[name][end].item() for name in ("ranks", "margins", "prompt_lengths"))
        )
        caption += f", group {int(sample['group_ids'][end])}, {merit}"
    return Section(
        caption=caption,
        tokens=sample["tokens"][here],
        targets=sample["labels"][here],
        learned=sample["loss_mask"][here],
        positions=sample["position_ids"][here],
    )


def is_padding(sample: dict[str, np.ndarray], segment: slice) -> bool:
    """Whether a segment is the padding of a pack: the last one, all zeros, not learned."""
    if "segment_ids" not in sample or segment.stop != len(sample["tokens"]):
        return False
    if "group_ids" in sample:
        return bool(sample["group_ids"][segment.start] == NO_GROUP)
    return not sample["tokens"][segment].any() and not sample["loss_mask"][segment].any()


def runs(section: Section) -> Iterator[tuple[bool, slice]]:
    """Maximal runs of a section whose tokens are all learned or all not: (is learned, slice).

    A token is learned as the target of the one before it.
    """
    is_learned = np.concatenate(([False], section.learned[:-1] > 0))
    borders = [0, *(np.flatnonzero(np.diff(is_learned)) + 1).tolist(), len(is_learned)]
    for first, last in zip(borders[:-1], borders[1:], strict=True):
        yield bool(is_learned[first]), slice(first, last)
