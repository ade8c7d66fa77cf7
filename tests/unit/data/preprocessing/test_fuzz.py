"""Damaged files end in our errors or in reads that stay within the file, whatever was damaged.

The tests take a fixed seed. For longer runs, which print the seed and keep the file that fails:

    python -m tests.unit.data.preprocessing.test_fuzz --seconds 600 --seed 1
"""

import argparse
import random
import struct
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from megatron_chimed.data.datasets.indexed import IndexedDataset
from megatron_chimed.data.datasets.preference import PreferenceDataset
from megatron_chimed.data.datasets.prefix import open_prefix
from megatron_chimed.data.datasets.pretrain import AtEod, PretrainDataset
from megatron_chimed.data.datasets.sft import SFTDataset
from megatron_chimed.data.formats.row import RowError
from megatron_chimed.data.inspection.verification import verify_prefix
from megatron_chimed.data.reading import examples_of, expand_inputs, format_of, iter_blocks
from megatron_chimed.errors import ChimedError
from tests.unit.data.packed_prefixes import answered, write_conversations, write_groups
from tests.unit.data.prefixes import numbered_documents, write_prefix
from tests.unit.data.reading.corpora import COMPRESSIONS, CONTAINERS

SEQ_LENGTH = 16
PREFIXES = {
    "pretrain": lambda path: write_prefix(path, numbered_documents([3, 9, 1, 12, 7, 5])),
    "sft": lambda path: write_conversations(path, answered([4, 9, 3, 12, 7])),
    "preference": lambda path: write_groups(
        path, [([1, 2], [([3, 4], 0), ([5], 1)]), ([6], [([7], 1), ([8, 9], 0), ([7, 7], 2)])]
    ),
}
ROWS = [
    {"text": "发热 39.5℃"},
    {"instruction": "问", "input": "", "output": "答", "history": [["a", "b"]]},
    {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]},
    {"conversations": [{"from": "human", "value": "问"}], "chosen": "好", "rejected": "坏"},
    {"prompt": ["一"], "output": ["二"]},
    {"id": 1, "question": "Q", "answer": "A", "x": {"y": [True, None, -1.5e3]}},
]
FLAT_ROWS = [{"question": "发热\n怎么办？", "answer": 'a "b", c'}] * 6
TABLES = ("csv", "tsv", "parquet")
WORDS = [struct.pack("<q", value) for value in (0, 1, -1, 2, 255, 2**31, 2**40, 2**62, 2**63 - 1)]
BYTES = [
    *(b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\r\n", b"\t", b"\0", b" " * 9),
    *(b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"NaN", b"1e999", b"[" * 300),
    *(b"id\t1\n", b"P\t", b"D\t", b"null", b'{"text": 1}', b'"text": "b",'),
]


def damage(raw: bytes, random_: random.Random, pieces: list[bytes]) -> bytes:
    """One to three changes: bits, pieces put in or over, parts lost, doubled or swapped."""
    data = bytearray(raw)
    for _ in range(random_.randint(1, 3)):
        place = random_.randint(0, len(data))
        end = min(place + random_.choice((1, 4, 8, 40)), len(data))
        piece = random_.choice(pieces)
        match random_.randrange(6):
            case 0 if data:
                data[place % len(data)] ^= 1 << random_.randrange(8)
            case 1:
                data[place : place + len(piece)] = piece
            case 2:
                data[place:place] = piece
            case 3:
                del data[place:end]
            case 4:
                data[end:end] = data[place:end]
            case 5:
                del data[place:]
    return bytes(data)


def fuzz_prefix(folder: Path, random_: random.Random) -> bool:
    """Damages one file of a prefix and reads all of it; whether the damage was refused."""
    stage = random_.choice(list(PREFIXES))
    prefix = folder / stage
    if not list(folder.glob(f"{stage}.*")):
        PREFIXES[stage](prefix)
    # Half of the time the token index: offsets that are not checked end there.
    paths = sorted(path for path in folder.glob(f"{stage}.*") if path.suffix != ".bin")
    indexes = [path for path in paths if path.suffix == ".idx"]
    path = random_.choice(random_.choice((paths, indexes)))
    good = path.read_bytes()
    path.write_bytes(damage(good, random_, WORDS if path in indexes else BYTES))
    try:
        read_prefix(str(prefix))
        refused = False
    except ChimedError:
        refused = True
    verify_prefix(str(prefix))
    path.write_bytes(good)
    return refused


def read_prefix(name: str) -> None:
    """Reads every sequence and a few samples, from memory that belongs to the file."""
    prefix = open_prefix(name)
    indexed = prefix.indexed
    read_index(indexed)
    common = {"documents": (0, indexed.num_documents), "seq_length": SEQ_LENGTH, "seed": 0}
    if prefix.stage == "pretrain":
        dataset = PretrainDataset(indexed, at_eod=AtEod(eod_id=2, reset_attention=True), **common)
    elif prefix.stage == "sft":
        dataset = SFTDataset(indexed, prefix.targets, overlong="truncate", **common)
    else:
        dataset = PreferenceDataset(
            indexed, prefix.targets, prefix.rankings, overlong="drop", **common
        )
    for index in range(min(dataset.samples_per_epoch, 8)):
        assert len(dataset[index]["tokens"]) == SEQ_LENGTH
        assert dataset.locate(index)


def read_index(indexed: IndexedDataset) -> None:
    assert sum(len(indexed[i]) for i in range(len(indexed))) == len(indexed.tokens)
    lengths = indexed.document_lengths(0, indexed.num_documents)
    assert lengths.sum() <= len(indexed.tokens)
    for document, length in enumerate(lengths.tolist()):
        start = indexed.document_start(document)
        assert 0 <= start <= start + length <= len(indexed.tokens)


def fuzz_rows(folder: Path, random_: random.Random) -> bool:
    """Damages a corpus file and reads it; whether a row or the file was refused."""
    container = random_.choice(list(CONTAINERS))
    rows = [random_.choice(ROWS)] * random_.randint(1, 20)
    raw = CONTAINERS[container](FLAT_ROWS if container in TABLES else rows)
    suffix, compress = random_.choice(list(COMPRESSIONS.items()))
    packed = compress(damage(raw, random_, BYTES))
    if random_.random() < 0.2:
        packed = damage(packed, random_, WORDS)
    own = container if container in TABLES else "json"
    name = random_.choice((own, own, "jsonl", "txt", "csv"))
    path = folder / f"corpus.{name}{suffix and '.' + suffix}"
    path.write_bytes(packed)
    try:
        return read_corpus(path)
    except ChimedError:
        return True
    finally:
        path.unlink()


def read_corpus(path: Path) -> bool:
    [entry] = expand_inputs([path])
    kind = format_of(entry)
    refused, last = False, (0, -1)
    for block in iter_blocks([entry], max_row_bytes=1 << 12):
        refused |= bool(block.oversized)
        for line, offset, examples in examples_of(block, entry, kind):
            assert (line, offset) > last, "rows go backwards"
            last = line, offset
            refused |= isinstance(examples, RowError)
    return refused


TARGETS = {"prefix": fuzz_prefix, "rows": fuzz_rows}


@pytest.mark.parametrize(("target", "cases"), [("prefix", 1500), ("rows", 1500)])
def test_damaged_files_are_refused_or_read_within_bounds(tmp_path, target, cases):
    refused = sum(TARGETS[target](tmp_path, random.Random(seed)) for seed in range(cases))
    assert cases / 2 < refused < cases  # else the damage is too small, or hides all behind it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first case; the next one adds 1"
    )
    parser.add_argument("--target", choices=TARGETS, action="append")
    arguments = parser.parse_args()
    targets = arguments.target or list(TARGETS)
    end, seed, refused = time.monotonic() + arguments.seconds, arguments.seed, 0
    with TemporaryDirectory() as folder:
        while time.monotonic() < end:
            for target in targets:
                try:
                    refused += TARGETS[target](Path(folder), random.Random(seed))
                except BaseException:
                    print(f"target {target}, seed {seed}", file=sys.stderr)
                    raise
            seed += 1
    cases = (seed - arguments.seed) * len(targets)
    print(f"{cases} cases, {refused} refused, none crashed; the next seed is {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
