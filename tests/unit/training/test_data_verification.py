"""When data are hashed again, and what is said of data that cannot be verified."""

import os
from pathlib import Path

import pytest

from megatron_chimed.data.datasets.config import DataConfig, build_datasets
from megatron_chimed.engine.agreement import Agreement
from megatron_chimed.errors import DataError
from megatron_chimed.training import data_verification
from megatron_chimed.training.data_verification import CACHE_NAME, remember, verify_data
from tests.unit.data.prefixes import IDENTITY, write_prefix


@pytest.fixture
def prefix(tmp_path, monkeypatch):
    """Data that have not changed for a while."""
    monkeypatch.setattr(data_verification, "UNSETTLED_SECONDS", -60.0)
    return write_prefix(tmp_path / "data", [[*range(30)]])


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that are hashed."""
    names, original = [], data_verification.verify_unit

    def remembering(unit):
        names.append(unit.file.path.name)
        return original(unit)

    monkeypatch.setattr(data_verification, "verify_unit", remembering)
    return names


def start(prefix, folder, mode="once"):
    """Opens and verifies as a run does."""
    datasets = build_datasets(
        DataConfig(train=str(prefix), seq_length=4),
        stage="pretrain",
        vocab_size=1000,
        tokenizer_identity=IDENTITY,
        eod_id=0,
        seed=0,
    )
    verified = verify_data(
        datasets, mode, Agreement(), folder=folder, on_meeting=lambda: print("met")
    )
    remember(folder, verified.known)
    return verified.datasets


def flip(path, *, keep_times=False):
    times = os.stat(path)
    raw = bytearray(path.read_bytes())
    raw[3] ^= 1
    path.write_bytes(raw)
    if keep_times:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_file_is_hashed_once_until_it_changes(prefix, tmp_path, hashed):
    first = start(prefix, tmp_path)
    assert hashed == ["data.bin", "data.idx"] and set(first.hashes) == {
        "data.train[0].bin",
        "data.train[0].idx",
    }
    hashed.clear()
    assert start(prefix, tmp_path).hashes == first.hashes and not hashed
    os.utime(f"{prefix}.bin")
    start(prefix, tmp_path)
    assert hashed == ["data.bin"]
    flip(Path(f"{prefix}.bin"), keep_times=True)  # the change time tells
    with pytest.raises(DataError, match=r"data\.bin: sha256 is .*, but the sidecar states"):
        start(prefix, tmp_path)


def test_always_means_always_and_size_never(prefix, tmp_path, hashed):
    start(prefix, tmp_path)
    start(prefix, tmp_path, "always")
    assert len(hashed) == 4
    flip(Path(f"{prefix}.bin"))
    notes = start(prefix, tmp_path, "size").notes
    assert len(hashed) == 4
    assert notes == ("data.verify is size: only the sizes of the data files were checked",)


@pytest.mark.parametrize(
    "damage", [b"", b"{", b'{"version": 1}', b'{"version":1,"known":3}', b"[1]"]
)
def test_a_damaged_cache_only_costs_time(prefix, tmp_path, hashed, damage):
    start(prefix, tmp_path)
    (tmp_path / CACHE_NAME).write_bytes(damage)
    start(prefix, tmp_path)
    assert len(hashed) == 4


def test_files_that_may_still_be_changing_are_not_remembered(prefix, tmp_path, hashed, monkeypatch):
    monkeypatch.setattr(data_verification, "UNSETTLED_SECONDS", 60.0)
    start(prefix, tmp_path)
    assert not (tmp_path / CACHE_NAME).exists()


def test_stock_files_train_with_a_line_and_are_known_from_then_on(prefix, tmp_path):
    Path(f"{prefix}.meta.json").unlink()
    first = start(prefix, tmp_path)
    [note] = first.notes
    assert note.startswith(f"{prefix}: bytes not verified") and "preprocess_data.py" in note
    assert start(prefix, tmp_path).hashes == first.hashes
    flip(Path(f"{prefix}.bin"))
    assert start(prefix, tmp_path).hashes != first.hashes


def test_a_long_verification_is_announced_with_its_speed(prefix, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data_verification, "ANNOUNCED_BYTES", 1)
    monkeypatch.setattr(data_verification, "MEETING_SECONDS", 0.0)
    start(prefix, tmp_path)
    first, *progress = capsys.readouterr().out.splitlines()
    assert first.startswith("verifying 0.0 GB of data against their hashes, shared by 1 ranks")
    assert progress[::2] == ["met"] * 3  # two files, and the end
    assert all(line.endswith("GB/s") for line in progress[1::2])
