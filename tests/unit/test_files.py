"""What stands under a final name is complete, whatever stopped its writer."""

import hashlib
import json
import os

import pytest

from megatron_chimed import files


class Stop(BaseException):
    """Like ^C: not an Exception."""


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_atomic_file_appears_only_when_complete(tmp_path):
    final = tmp_path / "new" / "corpus.bin"
    with files.atomic_file(final) as temporary:
        temporary.write_bytes(b"tokens")
        assert temporary.parent == final.parent, "a rename across file systems is not atomic"
        assert not final.exists()
    assert final.read_bytes() == b"tokens"
    assert names_in(final.parent) == ["corpus.bin"]


@pytest.mark.parametrize("stop", [ValueError, Stop])
def test_atomic_file_leaves_nothing_on_failure(tmp_path, stop):
    with pytest.raises(stop), files.atomic_file(tmp_path / "corpus.bin") as temporary:
        temporary.write_bytes(b"half")
        raise stop
    assert names_in(tmp_path) == []


def test_atomic_file_keeps_the_old_content_on_failure(tmp_path):
    final = tmp_path / "corpus.bin"
    final.write_bytes(b"old")
    with pytest.raises(Stop), files.atomic_file(final) as temporary:
        temporary.write_bytes(b"half of the new")
        raise Stop
    assert final.read_bytes() == b"old"
    with files.atomic_file(final) as temporary:
        temporary.write_bytes(b"new")
    assert final.read_bytes() == b"new"


def test_atomic_file_sweeps_what_a_killed_writer_left(tmp_path):
    final = tmp_path / "corpus.bin"
    left = files.temporary_path(final)
    left.write_bytes(b"left by a writer that was killed")
    with files.atomic_file(final) as temporary:
        assert not temporary.exists()
        temporary.write_bytes(b"new")
    assert names_in(tmp_path) == ["corpus.bin"]


def test_atomic_file_that_nobody_wrote_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), files.atomic_file(tmp_path / "corpus.bin"):
        pass
    assert names_in(tmp_path) == []


def test_atomic_directory_appears_only_when_complete(tmp_path):
    final = tmp_path / "runs" / "iter_0000001"
    with files.atomic_directory(final) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "shard").write_bytes(b"weights")
        assert not final.exists()
    assert (final / "deep" / "shard").read_bytes() == b"weights"
    assert names_in(final.parent) == ["iter_0000001"]


@pytest.mark.parametrize("stop", [ValueError, Stop])
def test_atomic_directory_leaves_nothing_on_failure(tmp_path, stop):
    with pytest.raises(stop), files.atomic_directory(tmp_path / "iter_0000001") as temporary:
        (temporary / "shard").write_bytes(b"half")
        raise stop
    assert names_in(tmp_path) == []


def test_atomic_directory_replaces_an_empty_folder_only(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with files.atomic_directory(empty) as temporary:
        (temporary / "shard").write_bytes(b"weights")
    with pytest.raises(FileExistsError, match="not empty"), files.atomic_directory(empty):
        raise AssertionError("the body must not run")
    assert (empty / "shard").read_bytes() == b"weights"
    assert names_in(tmp_path) == ["empty"]


def test_atomic_directory_refuses_a_file(tmp_path):
    (tmp_path / "taken").write_bytes(b"a file")
    with pytest.raises(FileExistsError), files.atomic_directory(tmp_path / "taken"):
        raise AssertionError("the body must not run")
    assert (tmp_path / "taken").read_bytes() == b"a file"


def test_files_are_synced_before_the_rename(tmp_path, monkeypatch):
    events = []
    real_fsync, real_replace, real_rename = os.fsync, os.replace, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), real_fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), real_replace(a, b)))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("rename"), real_rename(a, b)))
    with files.atomic_file(tmp_path / "file") as temporary:
        temporary.write_bytes(b"x")
    assert events == ["fsync", "rename", "fsync"]  # the file, then the folder that names it
    events.clear()
    with files.atomic_directory(tmp_path / "folder") as temporary:
        (temporary / "a").write_bytes(b"x")
        (temporary / "b").write_bytes(b"x")
    assert events == ["fsync", "fsync", "fsync", "rename", "fsync"]


def test_remove_takes_a_link_and_not_what_it_points_to(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "kept").write_bytes(b"x")
    link = tmp_path / "link"
    link.symlink_to(target)
    files.remove(link)
    assert names_in(tmp_path) == ["target"]
    assert names_in(target) == ["kept"]
    files.remove(tmp_path / "absent")
    files.remove(target)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("num_bytes", [0, 1, 9, 10, 11, 25])  # around the chunk size set below
def test_sha256_file_equals_hashlib(tmp_path, monkeypatch, num_bytes):
    monkeypatch.setattr(files, "HASH_CHUNK_BYTES", 10)
    content = bytes(range(num_bytes))
    (tmp_path / "file").write_bytes(content)
    assert files.sha256_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_write_json_is_utf8_and_readable(tmp_path):
    value = {"名": "高血压", "n": 1, "list": [1.5, None, True]}
    files.write_json(tmp_path / "meta.json", value)
    text = (tmp_path / "meta.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "高血压" in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_write_json_refuses_what_json_has_not(tmp_path, value):
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises((ValueError, TypeError)):
        files.write_json(tmp_path / "meta.json", {"loss": value})
    assert (tmp_path / "meta.json").read_text() == "{}"
    assert names_in(tmp_path) == ["meta.json"]


def test_atomic_directory_replaces_a_folder_only_when_complete(tmp_path):
    final = tmp_path / "tokenizer"
    final.mkdir()
    (final / "old").write_text("old")
    with pytest.raises(Stop), files.atomic_directory(final, replace=True) as temporary:
        (temporary / "half").write_text("half")
        raise Stop
    assert names_in(final) == ["old"]
    for _ in range(2):
        with files.atomic_directory(final, replace=True) as temporary:
            (temporary / "new").write_text("new")
            assert final.exists()
        assert names_in(final) == ["new"]
    assert names_in(tmp_path) == ["tokenizer"]
