"""Save, open and load in one process; every kind of damage; what stays when a save fails."""

import errno
import json
import os
import shutil

import pytest
import torch

from megatron_chimed import files
from megatron_chimed.checkpoint import commit, contents, safetensors_io
from megatron_chimed.checkpoint.commit import committed, prune, sweep
from megatron_chimed.checkpoint.load import load_checkpoint
from megatron_chimed.checkpoint.manifest import FileRecord, Manifest, encode_manifest, read_manifest
from megatron_chimed.checkpoint.reader import CheckpointReader, open_checkpoint
from megatron_chimed.engine.agreement import Agreement
from megatron_chimed.errors import CheckpointError, OutputError, UnsafeInputError
from tests.unit.checkpoint.toy import save_toy, toy_snapshot, toy_tensors, whole

TOY_FILES = (
    "config.json",
    "index.json",
    "manifest.json",
    "rank_00000.safetensors",
    "state.json",
    "tokenizer/special.json",
    "tokenizer/tokenizer.model",
)


def names_in(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def test_everything_comes_back(tmp_path):
    final = save_toy(tmp_path)
    assert final == tmp_path / "iter_0000010"
    assert names_in(final) == sorted(TOY_FILES)
    assert sorted(os.listdir(tmp_path)) == ["iter_0000010", "latest"]
    reader = open_checkpoint(tmp_path)
    assert (reader.iteration, reader.has_optimizer) == (10, True)
    assert reader.config == {"model": {"hidden_size": 4}}
    assert reader.manifest.layout == {"tensor_parallel_size": 1}
    assert reader.manifest.versions["megatron-core"] == "0.16.1"
    assert reader.state["betas"] == (0.9, 0.95)
    assert reader.state["scale"] == 65536.0
    assert torch.equal(reader.rank_states[0]["rng"], torch.arange(16, dtype=torch.uint8))
    assert (reader.tokenizer_folder / "tokenizer.model").read_bytes() == b"pieces"
    for key, tensor in toy_tensors().items():
        assert torch.equal(reader.read(key), tensor)
    shard = torch.empty(2, 3)
    reader.read_region("a.weight", (3, 1), shard)
    assert torch.equal(shard, toy_tensors()["a.weight"][3:5, 1:4])


def test_load_in_place_reports_what_nobody_read(tmp_path):
    save_toy(tmp_path)
    weight = torch.nn.Parameter(torch.zeros(6, 4))
    unread = load_checkpoint(
        open_checkpoint(tmp_path), [whole("a.weight", weight.detach())], agreement=Agreement()
    )
    assert torch.equal(weight, toy_tensors()["a.weight"])
    assert unread == ("b.weight", "exp_avg.a.weight")


def test_load_lists_everything_that_does_not_fit_and_changes_nothing(tmp_path):
    save_toy(tmp_path)
    weight = torch.zeros(6, 4)
    wanted = [whole("a.weight", weight), whole("b.weight", torch.zeros(5))]
    wanted += [whole("c.weight", torch.zeros(1)), whole("exp_avg.c.weight", torch.zeros(1))]
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(open_checkpoint(tmp_path), wanted, agreement=Agreement())
    message = str(caught.value)
    assert "2 tensors are not in it: c.weight, exp_avg.c.weight" in message
    assert "b.weight is (4,), not (5,)" in message
    assert torch.equal(weight, torch.zeros(6, 4))


def test_precision_may_change_between_save_and_load(tmp_path):
    master = torch.randn(8, 8)
    half = [whole("w", master.bfloat16()), whole("master.w", master)]
    save_toy(tmp_path, 1, shards=half)
    save_toy(tmp_path, 2, shards=[whole("w", master)])
    from_half, from_full = (
        CheckpointReader(tmp_path / name) for name in ("iter_0000001", "iter_0000002")
    )
    wanted = {key: torch.zeros(8, 8) for key in ("w", "master.w")}
    for reader in (from_half, from_full):
        load_checkpoint(
            reader, [whole(k, t.zero_()) for k, t in wanted.items()], agreement=Agreement()
        )
        assert torch.equal(wanted["w"], master), "fp32 weights come from the master weight"
        assert torch.equal(wanted["master.w"], master)
    bf16 = torch.zeros(8, 8, dtype=torch.bfloat16)
    load_checkpoint(from_full, [whole("w", bf16)], agreement=Agreement())
    assert torch.equal(bf16, master.bfloat16())


def damaged_copies(final, name):
    """(how, checkpoint) for a flipped bit, a cut-off tail and a missing file."""
    for how in ("flip first", "flip middle", "flip last", "truncate", "append", "remove"):
        copy = final.parent.with_name("copy") / final.name
        shutil.rmtree(copy.parent, ignore_errors=True)
        shutil.copytree(final, copy)
        content = bytearray((copy / name).read_bytes())
        if how.startswith("flip"):
            place = {"first": 0, "middle": len(content) // 2, "last": len(content) - 1}
            content[place[how.split()[1]]] ^= 1
        elif how == "truncate":
            del content[-1]
        else:
            content += b" "
        if how == "remove":
            (copy / name).unlink()
        else:
            (copy / name).write_bytes(content)
        yield how, copy


@pytest.mark.parametrize("name", TOY_FILES)
def test_any_damage_to_any_file_is_named(tmp_path, name):
    final = save_toy(tmp_path / "root")
    for how, copy in damaged_copies(final, name):
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(copy)
        assert name in str(caught.value), (how, str(caught.value))


def test_every_bit_of_the_manifest_is_proven(tmp_path):
    final = save_toy(tmp_path)
    path = final / "manifest.json"
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        with pytest.raises((CheckpointError, UnsafeInputError)):
            read_manifest(final)


def test_a_damaged_newest_falls_back_or_is_an_error_when_strict(tmp_path, caplog):
    save_toy(tmp_path / "checkpoints", 10)
    newest = save_toy(tmp_path / "checkpoints", 20)
    assert open_checkpoint(tmp_path).iteration == 20, "a run's folder is enough"
    (newest / "rank_00000.safetensors").unlink()
    assert open_checkpoint(tmp_path).iteration == 10
    assert "skipping a damaged checkpoint" in caplog.text
    assert "rank_00000.safetensors is missing" in caplog.text
    with pytest.raises(CheckpointError, match="is missing"):
        open_checkpoint(tmp_path, strict=True)
    with pytest.raises(CheckpointError, match="is missing"):
        open_checkpoint(newest)
    (tmp_path / "checkpoints/iter_0000010/state.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint is valid.*_00000.*state\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("hint", [b"", b"garbage\xff", b"iter_0000099", b"release"])
def test_the_hint_decides_nothing(tmp_path, hint, caplog):
    save_toy(tmp_path, 10)
    (tmp_path / "latest").write_bytes(hint)
    assert open_checkpoint(tmp_path).iteration == 10
    assert "does not name the newest" in caplog.text
    (tmp_path / "latest").unlink()
    assert open_checkpoint(tmp_path).iteration == 10


def test_no_checkpoint_is_an_error_never_a_fresh_start(tmp_path):
    with pytest.raises(CheckpointError, match="is not a folder"):
        open_checkpoint(tmp_path / "nowhere")
    (tmp_path / ".tmp-iter_0000010-run").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        open_checkpoint(tmp_path)
    (tmp_path / "iter_0000010").mkdir()
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read"):
        open_checkpoint(tmp_path)


def test_an_iteration_is_never_written_twice(tmp_path):
    final = save_toy(tmp_path)
    before = (final / "manifest.json").read_bytes()
    with pytest.raises(OutputError, match="exists, and a checkpoint is never overwritten"):
        save_toy(tmp_path)
    assert (final / "manifest.json").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["iter_0000010", "latest"]


def refuse(error):
    def fail(*args, **kwargs):
        raise error

    return fail


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (safetensors_io.os, "fsync"),
        (contents, "write_file"),
        (contents.manifests, "check_size"),
        (commit.os, "rename"),
        (commit.files, "fsync_directory"),
    ],
)
def test_a_full_disk_leaves_the_old_checkpoint_and_no_rest(tmp_path, monkeypatch, owner, name):
    save_toy(tmp_path, 10)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, refuse(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(OutputError, match="No space left on device"):
            save_toy(tmp_path, 20)
    assert "iter_0000020" not in os.listdir(tmp_path)
    assert open_checkpoint(tmp_path).iteration == 10
    save_toy(tmp_path, 20)
    assert sorted(os.listdir(tmp_path)) == ["iter_0000010", "iter_0000020", "latest"]


def test_a_bug_while_saving_leaves_nothing_either(tmp_path):
    class Unknown:
        pass

    with pytest.raises(CheckpointError, match=r"state\.x is a .*Unknown"):
        save_toy(tmp_path, state={"x": Unknown()})
    with pytest.raises(TypeError):
        save_toy(tmp_path, config={"x": Unknown()})
    assert os.listdir(tmp_path) == []


def test_leftovers_of_the_same_run_are_swept_others_only_on_request(tmp_path):
    own, other = (tmp_path / f".tmp-iter_0000005-{run}" for run in ("run", "other"))
    for folder in (own, other):
        folder.mkdir(parents=True)
        (folder / "rank_00000.safetensors").write_bytes(b"half")
    save_toy(tmp_path)
    assert not own.exists() and other.exists()
    assert sweep(tmp_path) == [other]
    assert not other.exists()
    with pytest.raises(OutputError, match="run id '../up' cannot be part"):
        from megatron_chimed.checkpoint.save import save_checkpoint

        save_checkpoint(tmp_path, toy_snapshot(20), agreement=Agreement(), run_id="../up")


def test_keep_removes_the_oldest_after_the_newest_was_proven(tmp_path):
    for iteration in (10, 20, 30):
        save_toy(tmp_path, iteration, keep=2)
    assert [path.name for path in committed(tmp_path)] == ["iter_0000030", "iter_0000020"]
    assert sorted(os.listdir(tmp_path)) == ["iter_0000020", "iter_0000030", "latest"]
    for iteration in (40, 50):
        save_toy(tmp_path, iteration, keep=2, protect=[20])
    assert [path.name[-2:] for path in committed(tmp_path)] == ["50", "40", "20"]


def test_pruning_follows_no_link(tmp_path):
    outside = save_toy(tmp_path / "outside", 1)
    root = tmp_path / "root"
    save_toy(root, 10)
    (root / "iter_0000001").symlink_to(outside, target_is_directory=True)
    assert prune(root, 1, "run") == []
    assert names_in(outside) == sorted(TOY_FILES)


def reseal(folder, **changes):
    """Writes a manifest that is consistent in itself, as an attacker could."""
    records = {
        name: FileRecord(
            size=(folder / name).stat().st_size, sha256=files.sha256_file(folder / name)
        )
        for name in names_in(folder)
        if name != "manifest.json"
    }
    content = {"iteration": 10, "run_id": "x", "layout": {}, "versions": {}, "files": records}
    (folder / "manifest.json").write_bytes(encode_manifest(Manifest(**(content | changes))))


def test_names_that_leave_the_folder_are_refused(tmp_path):
    final = save_toy(tmp_path)
    record = FileRecord(size=1, sha256="0" * 64)
    for name in ("../secret", "/etc/passwd", "a/../../b", "", "a\\b", "a\0b"):
        reseal(final, files={name: record})
        with pytest.raises(UnsafeInputError, match="is outside its folder"):
            open_checkpoint(final)
    index = json.loads((final / "index.json").read_text())
    index["tensors"]["b.weight"]["parts"][0]["file"] = "../secret.safetensors"
    (final / "index.json").write_text(json.dumps(index))
    reseal(final)
    with pytest.raises(CheckpointError, match=r"'\.\./secret\.safetensors', which the manifest"):
        open_checkpoint(final)


def test_a_file_may_not_be_a_link(tmp_path):
    final = save_toy(tmp_path)
    (final / "state.json").rename(tmp_path / "state.json")
    (final / "state.json").symlink_to(tmp_path / "state.json")
    with pytest.raises(CheckpointError, match=r"state\.json cannot be read: it is a link"):
        open_checkpoint(final)


def test_an_index_that_contradicts_its_files_is_refused(tmp_path):
    final = save_toy(tmp_path)
    index = json.loads((final / "index.json").read_text())
    index["tensors"]["b.weight"]["dtype"] = "F16"
    (final / "index.json").write_text(json.dumps(index))
    reseal(final)
    with pytest.raises(CheckpointError, match=r"rank_00000.*expects b\.weight@0 as \(4,\)"):
        open_checkpoint(final)
    index["version"] = 7
    (final / "index.json").write_text(json.dumps(index))
    reseal(final)
    with pytest.raises(CheckpointError, match=r"index\.json has version 7"):
        open_checkpoint(final)
    (final / "index.json").write_text("[]")
    reseal(final)
    with pytest.raises(CheckpointError, match=r"index\.json is malformed"):
        open_checkpoint(final)


class Killed(BaseException):
    """Stands for SIGKILL: nothing that cleans up after errors may catch it."""


def killed_after(real, calls):
    """`real`, until the shared iterator `calls` has run out."""

    def counted(*args, **kwargs):
        if next(calls, None) is None:
            raise Killed
        return real(*args, **kwargs)

    return counted


def test_a_kill_at_any_point_leaves_the_old_or_the_new_whole(tmp_path, monkeypatch):
    """Each system call of a save in turn is its last one; then the run is started again."""
    outcomes, finished = [], False
    while not finished:
        root = tmp_path / str(len(outcomes))
        save_toy(root, 10)
        calls = iter(range(len(outcomes)))
        with monkeypatch.context() as patched:
            for name in ("fsync", "rename", "replace", "mkdir"):
                patched.setattr(os, name, killed_after(getattr(os, name), calls))
            try:
                save_toy(root, 20)
                finished = True
            except Killed:
                pass
        outcomes.append(open_checkpoint(root, strict=True).iteration)
        if outcomes[-1] == 10:
            save_toy(root, 20)
            assert sorted(os.listdir(root)) == ["iter_0000010", "iter_0000020", "latest"]
        assert len(outcomes) < 100, "the save never comes to its end"
    assert outcomes == sorted(outcomes), "once committed, it stays"
    assert outcomes.count(10) > 10 and outcomes.count(20) > 2
