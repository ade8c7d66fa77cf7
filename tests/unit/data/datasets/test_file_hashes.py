"""No byte of a prefix is trusted: every flip in every file is found, by file and by hash."""

import json
import random
import re
from pathlib import Path

import pytest

from megatron_chimed import files
from megatron_chimed.data.datasets import file_hashes
from megatron_chimed.data.datasets.file_hashes import (
    DataFile,
    data_files,
    hash_units,
    joint_digest,
    open_explained,
    share_units,
    verify_unit,
)
from megatron_chimed.data.datasets.sidecar import read_sidecar
from megatron_chimed.errors import DataError
from tests.unit.data.packed_prefixes import answered, write_conversations, write_groups
from tests.unit.data.prefixes import edit_sidecar, write_prefix

FLIPS = 40
GROUPS = [([1, 2], [([3], 0), ([4], 1)]), ([5, 6], [([7, 8], 1), ([9], 0), ([10], 0)])]
FILES = {
    "pretrain": (".bin", ".idx", ".meta.json"),
    "sft": (".bin", ".idx", ".mask.bin", ".mask.idx", ".meta.json"),
    "preference": (
        *(".ranked.bin", ".ranked.idx", ".ranked.mask.bin", ".ranked.mask.idx"),
        *(".rank.json", ".meta.json"),
    ),
}


def write(folder, stage):
    folder.mkdir()
    if stage == "pretrain":
        return str(write_prefix(folder / "data", [[1, 2, 3], [4, 5], [6]]))
    if stage == "sft":
        return write_conversations(folder / "data", answered([4, 6, 5]))
    return write_groups(folder / "data", GROUPS)


def verify(name):
    """Digests of all units of a prefix in order."""
    found = [u for file in data_files(open_explained(name)) for u in hash_units(file)]
    return [[*verify_unit(unit)][-1] for unit in found]


@pytest.fixture(params=[64 << 20, 4], ids=["one block", "many blocks"])
def blocks(request, monkeypatch):
    """Writers and readers with small blocks."""
    for module in (files, file_hashes):
        monkeypatch.setattr(module, "BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(
    ("stage", "suffix"), [(stage, suffix) for stage in FILES for suffix in FILES[stage]]
)
def test_every_flip_is_refused_with_file_and_hashes(tmp_path, stage, suffix):
    name = write(tmp_path / "a", stage)
    verify(name)
    path = Path(f"{name}{suffix}")
    whole, draw = path.read_bytes(), random.Random(f"{stage}{suffix}")
    for _ in range(FLIPS):
        place, bit = draw.randrange(len(whole)), draw.randrange(8)
        path.write_bytes(bytes(b ^ (1 << bit) if i == place else b for i, b in enumerate(whole)))
        with pytest.raises(DataError) as caught:
            verify(name)
        text = str(caught.value)
        assert path.name in text and re.search(r"again|copy", text), text
        if place < len(whole) - 100:  # there the sidecar states its own hash
            assert len(set(re.findall(r"\b[0-9a-f]{64}\b", text))) == 2, text
    path.write_bytes(whole)
    verify(name)


@pytest.mark.parametrize("stage", FILES)
def test_files_of_equal_size_cannot_be_swapped(tmp_path, stage):
    name, other = write(tmp_path / "a", stage), write(tmp_path / "b", stage)
    token_file = Path(f"{other}{FILES[stage][0]}")
    swapped = bytes(reversed(token_file.read_bytes()))
    Path(f"{name}{FILES[stage][0]}").write_bytes(swapped)
    with pytest.raises(DataError, match="but the sidecar states"):
        verify(name)


def test_a_mask_of_other_values_is_refused_although_its_hash_is_right(tmp_path):
    name = write(tmp_path / "a", "sft")
    path = Path(f"{name}.mask.bin")
    path.write_bytes(b"\0\1\2" + path.read_bytes()[3:])
    stated = {".mask.bin": files.sha256_file(path)}
    edit_sidecar(Path(f"{name}.meta.json"), more_sha256=stated)
    with pytest.raises(DataError, match=r"mask\.bin, byte 2: the mask is 2"):
        verify(name)


def test_blocks_cover_a_file_and_are_shared_evenly(tmp_path, monkeypatch):
    for module in (files, file_hashes):
        monkeypatch.setattr(module, "BLOCK_BYTES", 4)
    name = str(write_prefix(tmp_path / "data", [[*range(11)]]))
    assert len(read_sidecar(Path(f"{name}.meta.json")).block_sha256[".bin"]) == 6
    bin_file, _ = data_files(open_explained(name))
    units = hash_units(bin_file)
    assert [(unit.start, unit.size) for unit in units] == [*[(4 * i, 4) for i in range(5)], (20, 2)]
    shares = share_units(units, 3)
    assert sorted(sum(shares, [])) == [*range(6)] and {len(share) for share in shares} == {2}


def test_stock_files_get_an_identity_of_their_own(tmp_path, monkeypatch):
    name = str(write_prefix(tmp_path / "data", [[1, 2], [3]]))
    Path(f"{name}.meta.json").unlink()
    monkeypatch.setattr(file_hashes, "BLOCK_BYTES", 4)
    assert all(file.sha256 is None for file in data_files(open_explained(name)))
    digests = verify(name)
    assert joint_digest(digests) != joint_digest(digests[::-1])


def test_a_sidecar_of_an_earlier_version_is_one_unit_per_file(tmp_path):
    name = write(tmp_path / "a", "sft")
    sidecar = Path(f"{name}.meta.json")
    value = json.loads(sidecar.read_text())
    del value["block_sha256"], value["more_sha256"], value["sidecar_sha256"]
    sidecar.write_text(json.dumps(value))
    found = data_files(open_explained(name))
    assert [file.sha256 is None for file in found] == [False, False, True, True]
    verify(name)


def test_the_number_of_blocks_must_fit():
    file = DataFile(
        path=Path("x.bin"), suffix=".bin", size=9, version="", sha256="0", block_sha256=("0",) * 3
    )
    with pytest.raises(DataError, match="which are 1 blocks, but its sidecar has hashes of 3"):
        hash_units(file)


def test_block_hashes_do_not_depend_on_how_bytes_arrive(monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 5)
    data, results = bytes(range(23)), []
    for size in (1, 4, 23):
        digest = files.BlockHash()
        for start in range(0, len(data), size):
            digest.update(data[start : start + size])
        results.append((digest.sha256, digest.block_sha256))
    assert results[0] == results[1] == results[2] and len(results[0][1]) == 5
