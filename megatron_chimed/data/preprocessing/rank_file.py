"""`P.rank.json`: per group of a preference prefix the ranks, margins and length of the prompt.

It is written from spools, a block of groups at a time; a reader takes it whole.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

import numpy as np

from megatron_chimed.data.preprocessing.documents import Groups
from megatron_chimed.data.preprocessing.index_file import read_blocks
from megatron_chimed.data.preprocessing.spool import Spool
from megatron_chimed.errors import DataError

FORMAT_VERSION = 1
BLOCK_GROUPS = 1 << 14  # as Python lists: bounds the memory
CANDIDATES, PROMPTS, RANKS, MARGINS = GROUP_SPOOLS = ("candidates", "prompts", "ranks", "margins")


def append_groups(groups: Groups, spools: Mapping[str, Spool]) -> None:
    """Adds groups to the spools named `GROUP_SPOOLS`."""
    assert groups.candidates.sum() == len(groups.ranks) == len(groups.margins), "groups"
    assert len(groups.prompt_lengths) == len(groups.candidates), "groups"
    spools[CANDIDATES].append(np.ascontiguousarray(groups.candidates, np.int32).data)
    spools[PROMPTS].append(np.ascontiguousarray(groups.prompt_lengths, np.int32).data)
    spools[RANKS].append(np.ascontiguousarray(groups.ranks, np.int32).data)
    spools[MARGINS].append(np.ascontiguousarray(groups.margins, np.float64).data)


def append_ranks(path: Path, candidates: np.ndarray, spools: Mapping[str, Spool]) -> None:
    """Adds the groups of a rank file.

    Args:
        path: The file; taken whole.
        candidates: int32 `[documents]`, sequences of each document, from the index.
        spools: Those of `append_groups`.

    Raises:
        DataError: It does not fit the index.
    """
    try:
        groups = _parse(json.loads(path.read_text(encoding="utf-8")), candidates)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} does not fit its index ({error}): preprocess again.") from None
    append_groups(groups, spools)


def _parse(value: dict, candidates: np.ndarray) -> Groups:
    ranks = value["ranks"]
    margins = [None] * len(ranks) if value["margins"] is None else value["margins"]
    filled = [m or [math.nan] * len(r) for m, r in zip(margins, ranks, strict=True)]
    sizes = candidates.tolist()
    if value["format_version"] != FORMAT_VERSION or len(value["prompt_lengths"]) != len(sizes):
        raise ValueError("format_version or the number of groups differs")
    if any([len(entry) for entry in lists] != sizes for lists in (ranks, filled)):
        raise ValueError("the number of candidates differs")
    return Groups(
        candidates=candidates,
        prompt_lengths=np.array(value["prompt_lengths"], np.int32),
        ranks=np.array([*itertools.chain.from_iterable(ranks)], np.int32),
        margins=np.array([*itertools.chain.from_iterable(filled)], np.float64),
    )


def write_ranks(path: Path, folder: Path) -> None:
    """Writes the JSON file from the spools in `folder`; not synced.

    `margins` is null where no group has any, else a list with null for each group that has none.
    """
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(f'{{"format_version": {FORMAT_VERSION}, "ranks": ')
        _write_list(stream, _grouped(folder, RANKS, np.int32))
        stream.write(', "margins": ')
        if any(not np.isnan(block).all() for block in read_blocks(folder / MARGINS, np.float64)):
            _write_list(stream, _margins(folder))
        else:
            stream.write("null")
        stream.write(', "prompt_lengths": ')
        _write_list(stream, _ungrouped(folder, PROMPTS))
        stream.write("}\n")


def _grouped(folder: Path, name: str, dtype: type) -> Iterator[list]:
    """The entries of each group, a list per group."""
    with open(folder / name, "rb") as stream:
        for candidates in read_blocks(folder / CANDIDATES, np.int32, BLOCK_GROUPS):
            values = iter(np.fromfile(stream, dtype, candidates.sum()).tolist())
            for size in candidates.tolist():
                yield list(itertools.islice(values, size))


def _ungrouped(folder: Path, name: str) -> Iterator[int]:
    for block in read_blocks(folder / name, np.int32, BLOCK_GROUPS):
        yield from block.tolist()


def _margins(folder: Path) -> Iterator[list[float] | None]:
    for group in _grouped(folder, MARGINS, np.float64):
        yield None if all(map(math.isnan, group)) else group


def _write_list(stream: TextIO, items: Iterator[object]) -> None:
    separator = "["
    while part := list(itertools.islice(items, BLOCK_GROUPS)):
        stream.write(separator + json.dumps(part, allow_nan=False)[1:-1])
        separator = ", "
    stream.write("[]" if separator == "[" else "]")
