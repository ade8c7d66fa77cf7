"""DPO through the commands: the reference's pass over the data, training, and what is refused."""

import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_chimed.checkpoint.reader import CheckpointReader, newest_checkpoint
from megatron_chimed.observe.metrics import read_metrics
from tests.integration import commands
from tests.integration.commands import call
from tests.integration.preferences import configure, make_project, train

STEPS = 16


def dpo_config(folder, name, **sections):
    sections = {
        "data": {"train": f"{folder}/train", "valid": f"{folder}/held"},
        "optim": {"lr": 2e-3},
        "training": {"train_steps": STEPS},
        "checkpoint": {"load": str(folder / "sft")},
        **sections,
    }
    return configure(folder, name, stage="dpo", **sections)


def reference_of(run):
    return load_file(run / "reference.safetensors")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A language model, and a policy made of it."""
    folder = make_project(tmp_path_factory.mktemp("dpo"))
    return folder, train(dpo_config(folder, "run"))


def test_a_policy_learns_to_prefer_from_its_reference_on(project):
    folder, said = project
    assert f"reference: log-probabilities by {folder}/sft" in said
    assert "global batches computed" in said
    assert "groups of answers keep their loss" in said
    assert CheckpointReader(newest_checkpoint(folder / "run")).config["template"]["name"] == "ziya"
    events = read_metrics(folder / "run/metrics.jsonl")
    first, *_, last = (event for event in events if event["kind"] == "train")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6), "policy and reference are one"
    assert first["log_ratio"] == pytest.approx(0, abs=1e-6)
    assert last["loss"] < 0.6
    (valid,) = (event for event in events if event["kind"] == "valid")
    assert valid["accuracy"] > 0.9
    assert valid["margin"] == pytest.approx(valid["reward_better"] - valid["reward_worse"])
    assert valid["margin"] > 0.1


def test_the_reference_is_bound_to_model_and_data(project):
    folder, _ = project
    reference = reference_of(folder / "run")
    assert sorted(tensor.shape[0] for tensor in reference.values()) == [32, 96]
    assert all(tensor.dtype is torch.float64 for tensor in reference.values())
    assert all((tensor < 0).all() for tensor in reference.values())
    assert len({name.split()[0] for name in reference}) == 1, "one model"


def test_a_run_stopped_on_the_way_ends_like_an_unbroken_one(project):
    folder, _ = project
    path = dpo_config(folder, "broken")
    train(path, "--training.stop_step", 6)
    said = train(path)
    assert "resumed from" in said
    assert "all read" in said
    ours, unbroken = (
        CheckpointReader(folder / run / f"checkpoints/iter_{STEPS:07d}")
        for run in ("broken", "run")
    )
    for key in unbroken.tensors:
        assert torch.equal(ours.read(key), unbroken.read(key)), key


@pytest.mark.parametrize("steps", [0, 6])
def test_a_reference_cut_short_is_completed_and_changes_nothing(project, steps):
    """Before the first step, or of a run that goes on with weights of its own."""
    folder, _ = project
    whole = reference_of(folder / "run")
    name = f"cut{steps}"
    path, run = dpo_config(folder, name), folder / name
    if steps:
        train(path, "--training.stop_step", steps)
    run.mkdir(exist_ok=True)
    cut = {key: tensor.clone() for key, tensor in whole.items()}
    for tensor in cut.values():
        tensor[len(tensor) // 2 :] = math.nan
    save_file(cut, run / "reference.safetensors")
    said = train(path)
    assert "global batches computed" in said
    found = reference_of(run)
    assert all(torch.equal(found[key], whole[key]) for key in whole)
    assert commands.train_losses(run) == commands.train_losses(folder / "run")


def test_every_layout_computes_the_same_reference(project, gloo_pool):
    folder, _ = project
    path = dpo_config(folder, "wide", training={"train_steps": 2, "global_batch_size": 8})
    words = ["--config", str(path), "--parallel.tensor_parallel_size", "2"]
    words += ["--parallel.pipeline_parallel_size", "2", "--parallel.sequence_parallel", "true"]
    gloo_pool.run(commands.train_in_pool, 4, words, init=False)
    whole, found = reference_of(folder / "run"), reference_of(folder / "wide")
    for key in whole:
        torch.testing.assert_close(found[key], whole[key], rtol=0, atol=2e-5)


def test_another_reference_is_refused(project):
    folder, _ = project
    path = dpo_config(folder, "other")
    train(path, "--training.stop_step", 2)
    done = call("train", "--config", path, "--checkpoint.load", folder / "run")
    assert done.code == 78
    assert "holds the log-probabilities of another reference" in done.err
    shutil.rmtree(folder / "other")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"checkpoint": {}}, "stage dpo starts from a model, which stays its reference"),
        ({"dpo": {"beta": 0.0}}, "--dpo.beta is 0.0"),
        ({"dpo": {"label_smoothing": 0.5}}, "--dpo.label_smoothing is 0.5"),
        ({"dpo": {"loss": "ipo", "label_smoothing": 0.1}}, "but the loss ipo has none"),
    ],
)
def test_what_cannot_be_optimised_is_refused(project, sections, message):
    folder, _ = project
    done = call("train", "--config", dpo_config(folder, "no", **sections))
    assert done.code == 78
    assert message in done.err
    assert not (folder / "no").exists()
