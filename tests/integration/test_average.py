"""The mean of checkpoints is that of their weights, and only of checkpoints of one model."""

import shutil

import pytest
import torch

from megatron_chimed.checkpoint.reader import open_checkpoint
from megatron_chimed.conversion import hf
from tests.integration.commands import call
from tests.integration.hf_folders import edit_weights, make_hf

DTYPES = (torch.float32, torch.bfloat16)


def make_run(folder, count=3, **options):
    """A run whose checkpoints 1, 2, .. hold other weights each."""
    for number in range(1, count + 1):
        source = folder / f"hf-{number}"
        make_hf(source, shard="5GB", **options)
        edit_weights(source, lambda tensors, n=number: [t.mul_(n * n) for t in tensors.values()])
        done = hf.import_hf(source, folder / f"import-{number}")
        target = folder / f"run/checkpoints/iter_{number:07d}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(done.output, target)
    return folder / "run"


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mean_is_rounded_once(tmp_path, dtype):
    run = make_run(tmp_path, dtype=dtype)
    words = ("--run", run, "--last", 2, "--output", tmp_path / "mean")
    done = call("average_checkpoints", *words)
    assert done.code == 0 and "iter_0000002 to iter_0000003" in done.out, done.err
    mean = open_checkpoint(tmp_path / "mean")
    sources = [open_checkpoint(run / f"checkpoints/iter_000000{n}") for n in (2, 3)]
    assert set(mean.tensors) == set(sources[0].tensors)
    for key in mean.tensors:
        expected = sum(source.read(key).double() for source in sources) / 2
        assert torch.equal(mean.read(key), expected.to(dtype)), key
    assert mean.config["model"] == sources[0].config["model"]
    words = ("export-hf", "--checkpoint", tmp_path / "mean", "--output", tmp_path / "hf")
    assert call("convert_checkpoint", *words).code == 0


def test_what_is_not_one_models_is_refused(tmp_path):
    run = make_run(tmp_path / "a", count=2)
    other = make_run(tmp_path / "b", count=1, num_hidden_layers=1)
    output = ("--output", tmp_path / "mean")
    pair = (run / "checkpoints/iter_0000001", other / "checkpoints/iter_0000001")
    done = call("average_checkpoints", "--checkpoints", *pair, *output)
    assert done.code == 74 and "section 'model' differs" in done.err, done.err
    done = call("average_checkpoints", "--run", run, *output)
    assert done.code == 74 and "has 2 checkpoints, --last asks for 5" in done.err, done.err
    done = call("average_checkpoints", "--checkpoints", pair[0], *output)
    assert "nothing to average in 1 checkpoint" in done.err
    assert "--last is 1" in call("average_checkpoints", "--run", run, "--last", 1, *output).err
    assert not (tmp_path / "mean").exists()


def test_a_mean_replaces_nothing_and_leaves_nothing_half_written(tmp_path):
    run = make_run(tmp_path, count=2)
    words = ("--run", run, "--last", 2, "--output", tmp_path / "mean")
    assert call("average_checkpoints", *words).code == 0
    done = call("average_checkpoints", *words)
    assert done.code == 73, done.err
    assert sorted(path.name for path in (tmp_path / "mean").iterdir()) == ["iter_0000000", "latest"]
