"""The mean of checkpoints is that of their weights, and only of checkpoints of one model."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch

from megatron_chimed.checkpoint.commit import write_best_hint
from megatron_chimed.checkpoint.manifest import (
    MANIFEST_NAME,
    FileRecord,
    encode_manifest,
    read_manifest,
)
from megatron_chimed.checkpoint.reader import open_checkpoint
from megatron_chimed.conversion import hf
from megatron_chimed.conversion.averaging import average_checkpoints, last_checkpoints
from megatron_chimed.errors import CheckpointError, ConfigError
from tests.distributed import jobs
from tests.integration.commands import call
from tests.integration.hf_folders import edit_weights, file_tensors, make_hf
from tests.tiers import full_but

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
    assert done.code == 74 and "num_layers is 1 there and 2 here" in done.err
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


TP2_PP2 = {**jobs.TP2, **jobs.PP2}
SPLIT = {
    "TP2": (jobs.TP2, 1),
    "PP2": (jobs.PP2, 1),
    "DP2": (jobs.DP2_DISTRIBUTED, 2),  # master weights in flat ranges
    "TP2xPP2": (TP2_PP2, 1),
}
MODEL = {"num_key_value_heads": 1, "qkv_bias": True, "tie_word_embeddings": True}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture
def trained(gloo_pool, tmp_path):
    """Makes a run of three steps, each with a checkpoint, at some layout."""

    def train(layout, precision, **options):
        parallel, data_parallel_size = SPLIT[layout]
        gloo_pool.run(
            jobs.run,
            jobs.world_size(parallel, data_parallel_size),
            init=False,
            parallel=parallel,
            model=MODEL,
            output_dir=str(tmp_path / "run"),
            training={"train_steps": 3, "precision": precision},
            checkpoint={"save_interval": 1, "keep": 3},
            optim={"initial_loss_scale": 256.0},
            **options,
        )
        return tmp_path / "run"

    return train


@pytest.mark.parametrize(
    ("layout", "precision"),
    full_but(
        [("TP2", "fp32"), ("DP2", "bf16"), ("TP2xPP2", "bf16")],
        [(layout, precision) for layout in SPLIT for precision in DTYPES],
    ),
)
def test_the_mean_of_a_split_run_is_that_of_what_it_trained(trained, tmp_path, layout, precision):
    """Exported, against numpy: the exports' weights of a run in fp32, else their fp32 masters."""
    folders = last_checkpoints(trained(layout, precision), 3)
    average_checkpoints(folders, tmp_path / "mean")
    hf.export_hf(tmp_path / "mean", tmp_path / "out")
    exports = []
    for folder in folders:
        hf.export_hf(folder, tmp_path / folder.name)
        exports.append(file_tensors(tmp_path / folder.name))
    readers = [open_checkpoint(folder) for folder in folders]
    found = file_tensors(tmp_path / "out")
    assert found.keys() == exports[0].keys() and "lm_head.weight" not in found
    rounded_twice = 0
    for key, tensor in found.items():
        of_exports = np.mean([export[key].double().numpy() for export in exports], axis=0)
        expected = of_exports
        if precision != "fp32":
            expected = np.mean([r.read(f"master.{key}").double().numpy() for r in readers], axis=0)
        assert tensor.dtype is DTYPES[precision]
        assert torch.equal(tensor, torch.from_numpy(expected).to(tensor.dtype)), key
        # A 16-bit weight is within half a step of its master, and so is their mean.
        eps = torch.finfo(tensor.dtype).eps
        np.testing.assert_allclose(tensor.double().numpy(), of_exports, rtol=2 * eps, atol=2 * eps)
        rounded_twice += int((tensor != torch.from_numpy(of_exports).to(tensor.dtype)).sum())
    assert (rounded_twice > 0) is (precision != "fp32"), "the masters make a difference"


def test_settings_that_change_no_tensor_may_differ(tmp_path):
    """As where a run goes on with recomputation; the mean keeps the last's."""
    run = make_run(tmp_path, count=2)
    first, second = last_checkpoints(run, 2)
    rewrite_model(second, recompute="full", attention_dropout=0.1)
    average_checkpoints([first, second], tmp_path / "mean")
    assert open_checkpoint(tmp_path / "mean").config["model"]["recompute"] == "full"
    rewrite_model(second, rope_theta=5e5)
    with pytest.raises(CheckpointError, match=r"rope_theta is 500000.0 there and 10000.0 here"):
        average_checkpoints([first, second], tmp_path / "other")


def rewrite(folder, name, edit):
    """Edits a JSON file of a checkpoint, and the manifest with it."""
    path, manifest = folder / name, read_manifest(folder)
    value = json.loads(path.read_text())
    edit(value)
    content = json.dumps(value).encode()
    path.write_bytes(content)
    record = FileRecord(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    changed = dataclasses.replace(manifest, files={**manifest.files, name: record})
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(changed))


def rewrite_model(folder, **changes):
    rewrite(folder, "config.json", lambda config: config["model"].update(changes))


def test_folders_that_cannot_be_averaged_are_named(tmp_path):
    run = make_run(tmp_path, count=3)
    first, second, third = last_checkpoints(run, 3)
    write_best_hint(run / "checkpoints", 3)
    for paths in ([first, first], [third, run], [third, run / "checkpoints/best"]):
        with pytest.raises(ConfigError, match=r"iter_000000\d is given twice, and would count"):
            average_checkpoints(paths, tmp_path / "mean")
    with pytest.raises(ConfigError, match="holds the checkpoints themselves"):
        average_checkpoints([first, second], run / "checkpoints")
    with pytest.raises(CheckpointError, match="nowhere is not a folder"):
        average_checkpoints([first, tmp_path / "nowhere"], tmp_path / "mean")
    with pytest.raises(CheckpointError, match="hf-1 is a Hugging Face folder"):
        average_checkpoints([first, tmp_path / "hf-1"], tmp_path / "mean")
    weights = next(third.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for paths in ([first, third], [first, run]):  # no older one takes its place
        with pytest.raises(CheckpointError, match=f"{weights.name}.*sha256"):
            average_checkpoints(paths, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
    assert [path.name for path in (run / "checkpoints").glob("iter_*0")] == []


def test_adapters_are_refused(trained, tmp_path):
    folders = last_checkpoints(trained("PP2", "fp32", lora={"rank": 2}), 2)
    with pytest.raises(CheckpointError, match="holds adapters.*Export each with export-hf"):
        average_checkpoints(folders, tmp_path / "mean")


def test_another_tokenizer_or_template_is_refused(tmp_path):
    first, second, third = last_checkpoints(make_run(tmp_path, count=3), 3)
    rewrite(second, "state.json", lambda state: state["state"].update(tokenizer_identity="x"))
    rewrite(third, "config.json", lambda config: config.update(template="x"))
    for other, said in ((second, "their tokenizers differ"), (third, "section 'template'")):
        with pytest.raises(CheckpointError, match=f"are not of one model: .*{said}"):
            average_checkpoints([first, other], tmp_path / "mean")
