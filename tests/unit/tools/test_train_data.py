"""The training command and the bytes of its data: what it refuses, and what it resumes with."""

import shutil

import pytest

# ruff: noqa: F811 - a test's argument is the imported fixture
from tests.unit.tools.test_train import files, run  # noqa: F401

SUFFIXES = (".bin", ".idx", ".meta.json")


def copied(files, folder, *names):
    """Copies of prefixes, to be changed."""
    folder.mkdir()
    for name in names:
        for suffix in SUFFIXES:
            shutil.copy(files / f"{name}{suffix}", folder)
    return folder


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[8] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("name", "suffix"), [*(("train", suffix) for suffix in SUFFIXES), ("valid", ".bin")]
)
def test_one_changed_bit_of_the_data_ends_with_65(run, files, tmp_path, name, suffix):
    folder = copied(files, tmp_path / "data", "train", "valid")
    flip(folder / f"{name}{suffix}")
    data = {"train": str(folder / "train"), "valid": str(folder / "valid")}
    code, out, err = run(data=data)
    assert (code, out) == (65, "") and f"{name}{suffix}" in err
    assert "states" in err and "preprocess again" in err and not (tmp_path / "run").exists()


def test_a_run_resumes_only_with_the_data_of_its_start(run, files, tmp_path):
    folder = copied(files, tmp_path / "data", "train", "valid", "short")
    (folder / "train.meta.json").unlink()  # a stock Megatron file
    data = {"train": str(folder / "train"), "valid": str(folder / "valid")}
    code, out, _ = run("--training.stop_step", 1, "--logging.progress", "plain", data=data)
    assert code == 0 and "bytes not verified" in out
    for suffix in SUFFIXES:  # another valid prefix under the old name
        shutil.copy(files / f"train{suffix}", folder / f"valid{suffix}")
    code, _, err = run(data=data)
    assert code == 78 and "data files were replaced" in err and "data.valid[0].bin was" in err
    data["valid"] = str(files / "valid")
    flip(folder / "train.bin")
    code, _, err = run(data=data)
    assert code == 78 and "sha256 of data.train[0].bin was" in err and "data.valid" not in err
    flip(folder / "train.bin")
    assert run(data=data)[0] == 0


def test_verify_is_checked(run):
    code, _, err = run(data={"verify": "never"})
    assert code == 78 and "data.verify" in err and "once, always, size" in err
