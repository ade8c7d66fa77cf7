"""What paths hold, as hashes."""

import os

import pytest

from megatron_chimed import files
from megatron_chimed.errors import ConfigError
from megatron_chimed.workflow import artifacts
from megatron_chimed.workflow.artifacts import HashCache, exists, hash_artifact, set_aside
from tests.unit.data.prefixes import write_prefix


@pytest.fixture
def cache(tmp_path):
    return HashCache(tmp_path / "hashes.json", print)


def test_files_folders_and_patterns(tmp_path, cache):
    folder = tmp_path / "text"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    (folder / "deep/b.txt").write_text("b")
    (folder / ".tmp-c").write_text("half")
    found = hash_artifact("files", str(folder), cache)
    assert found == {
        "a.txt": files.sha256_file(folder / "a.txt"),
        "deep/b.txt": files.sha256_file(folder / "deep/b.txt"),
    }
    assert hash_artifact("files", str(folder / "*.txt"), cache) == {
        str(folder / "a.txt"): found["a.txt"]
    }
    for missing in ("c.txt", "*.json"):
        with pytest.raises(ConfigError, match="does not exist"):
            hash_artifact("files", str(folder / missing), cache)


def test_a_file_is_read_again_only_when_it_has_changed(tmp_path, cache, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("a")
    before = cache.sha256(path)
    cache.save()
    read = []
    monkeypatch.setattr(
        artifacts.files, "sha256_file", lambda path: read.append(path) or f"hash {len(read)}"
    )
    again = HashCache(tmp_path / "hashes.json", print)
    assert again.sha256(path) == before and read == []
    stamp = path.stat().st_mtime_ns
    path.write_text("b")
    os.utime(path, ns=(stamp, stamp))  # the same size and the old time
    assert again.sha256(path) == "hash 1"


def test_a_damaged_cache_is_said_and_left(tmp_path, capsys):
    (tmp_path / "hashes.json").write_text("{")
    (tmp_path / "a").write_text("a")
    cache = HashCache(tmp_path / "hashes.json", print)
    assert cache.sha256(tmp_path / "a") == files.sha256_file(tmp_path / "a")
    assert "every input is hashed again" in capsys.readouterr().out


def test_a_prefix_is_known_by_its_sidecar(tmp_path, cache):
    prefix = tmp_path / "data"
    write_prefix(prefix, [[3, 4, 5], [6]])
    found = hash_artifact("prefix", str(prefix), cache)
    assert found == {s: files.sha256_file(f"{prefix}{s}") for s in (".bin", ".idx")}
    assert not (tmp_path / "hashes.json").exists()
    (tmp_path / "data.idx").unlink()
    with pytest.raises(ConfigError, match="data.idx does not exist"):
        hash_artifact("prefix", str(prefix), cache)


def test_what_is_set_aside_keeps_its_files(tmp_path):
    for content in (b"1", b"2"):
        (tmp_path / "data.bin").write_bytes(content)
        (tmp_path / "data.idx").write_bytes(content)
        (tmp_path / "data2.idx").write_bytes(content)
        number = content.decode()
        assert set_aside("prefix", str(tmp_path / "data")) == f"{tmp_path}/data.replaced-{number}"
        assert not exists("prefix", str(tmp_path / "data"))
        assert (tmp_path / f"data.replaced-{number}.idx").read_bytes() == content
    assert (tmp_path / "data2.idx").exists()
    assert set_aside("files", str(tmp_path / "nothing")) is None


def test_a_folder_in_which_nothing_began_is_nothing(tmp_path):
    (tmp_path / "run/launch").mkdir(parents=True)
    assert not exists("checkpoint", str(tmp_path / "run"))
    (tmp_path / "run/config.yaml").touch()
    assert exists("checkpoint", str(tmp_path / "run"))
