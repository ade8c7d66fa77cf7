"""What a run may go on from, and what it refuses, with the difference in the message."""

import dataclasses
import json
import shutil

import pytest
import torch

from megatron_chimed import engine
from megatron_chimed.checkpoint.commit import committed
from megatron_chimed.checkpoint.reader import CheckpointReader, open_checkpoint
from megatron_chimed.errors import CheckpointError, ChimedError, ConfigError
from megatron_chimed.training import loop, state
from tests.distributed import jobs
from tests.unit.training import run

ORDER = {
    "data.train": [["sha256 1", 0.3], ["sha256 2", 0.7]],
    "data.split": "9,1,0",
    "data.seq_length": 32,
    "training.seed": 1234,
}
IDENTITY = "a" * 64


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three steps, for copies."""
    folder = tmp_path_factory.mktemp("finished")
    run.train(
        folder,
        training={"train_steps": 3},
        checkpoint={"save_interval": 1, "keep": 0},
        order=ORDER,
        tokenizer=IDENTITY,
    )
    return folder / "run"


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path


def resume(folder, **options):
    """Restores without a step."""
    settings = {"order": ORDER, "tokenizer": IDENTITY, **options}
    with run.job(folder, **settings) as job:
        return state.restore(job), run.weights(job), dataclasses.replace(job.progress)


def refusal(folder, **options):
    """The message, when nothing in the folder was touched."""
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if "store-" not in p.name}
    with pytest.raises(ChimedError) as caught:
        resume(folder, **options)
    after = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if "store-" not in p.name}
    after.pop(folder, None), before.pop(folder, None)  # the store of each job lies there
    assert after == before
    return caught.type, str(caught.value)


def test_the_newest_checkpoint_is_taken_whole(copied):
    said, weights, progress = resume(copied)
    assert "iter_0000003 at step 3; random streams restored" in said
    assert (progress.step, progress.consumed_samples) == (3, 24)
    reader = CheckpointReader(copied / "run/checkpoints/iter_0000003")
    assert weights.keys() == reader.tensors.keys()
    for key, tensor in weights.items():
        assert torch.equal(tensor, reader.read(key)), key


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 299),
        ("hidden_size", 128),
        ("num_layers", 8),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 2),
        ("ffn_hidden_size", 128),
        ("rms_norm_eps", 1e-5),
        ("rope_theta", 5e5),
        ("rope_scaling_factor", 2.0),
    ],
)
def test_another_architecture_is_refused(copied, field, value):
    kind, message = refusal(copied, model={field: value})
    assert kind is ConfigError
    stored = getattr(jobs.MODEL, field)
    assert f"holds another architecture: {field} is {stored} there and {value} here" in message
    assert "iter_0000003" in message and "Set the model section" in message


def test_all_differences_are_named_at_once(copied):
    _, message = refusal(copied, model={"num_layers": 2, "ffn_hidden_size": 32})
    assert "num_layers is 4 there and 2 here; ffn_hidden_size is 96 there and 32 here" in message


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_dropout": 0.2},
        {"attention_backend": "reference"},
        {"recompute": "full"},
        {"max_position_embeddings": 128},
    ],
)
def test_what_does_not_change_the_tensors_may_change(copied, changes):
    assert "at step 3" in resume(copied, model=changes)[0]


def test_another_tokenizer_is_refused(copied):
    kind, message = refusal(copied, tokenizer="b" * 64)
    assert kind is ConfigError
    assert f"another tokenizer (sha256 {IDENTITY[:12]}, this run's is {'b' * 12})" in message
    assert "Set --tokenizer to the one in" in message


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("data.train", [["sha256 1", 1.0]], "is [['sha256 1', 1.0]]"),
        ("data.train", ORDER["data.train"][::-1], "data.train was [['sha256 1', 0.3], "),
        ("data.split", None, "data.split was '9,1,0' and is None"),
        ("data.seq_length", 16, "data.seq_length was 32 and is 16"),
        ("training.seed", 99, "training.seed was 1234 and is 99"),
    ],
)
def test_other_data_is_refused(copied, name, value, message):
    kind, told = refusal(copied, order={**ORDER, name: value})
    assert kind is ConfigError
    assert "its order of samples would change" in told and message in told
    assert "--checkpoint.load" in told and "with another --output-dir" in told


def test_all_that_changes_the_order_is_named_at_once(copied):
    _, told = refusal(copied, order={**ORDER, "data.split": None, "training.seed": 1})
    assert "data.split was '9,1,0' and is None; training.seed was 1234 and is 1." in told


def test_checkpoints_are_never_written_over(copied):
    kind, message = refusal(copied, checkpoint={"resume": False})
    assert kind is ConfigError
    assert "holds checkpoints, but --checkpoint.resume is false" in message
    assert "Give another --output-dir, or remove the folder" in message


def test_weights_alone_start_a_new_run(copied, tmp_path):
    """Another seed, other data and no optimizer state: only model and tokenizer must fit."""
    source = copied / "run/checkpoints/iter_0000002"
    said, weights, progress = resume(
        tmp_path / "new",
        checkpoint={"load": str(source)},
        training={"seed": 7},
        order={**ORDER, "training.seed": 7, "data.split": None},
    )
    assert said == f"weights from {source}, optimizer and data from the start"
    assert (progress.step, progress.consumed_samples) == (0, 0)
    reader = CheckpointReader(source)
    for key, tensor in weights.items():
        moment = key.startswith("exp_avg")
        assert torch.equal(tensor, torch.zeros_like(tensor) if moment else reader.read(key)), key


def test_loaded_weights_reach_the_master_weights(copied, tmp_path):
    """In bf16 the optimizer updates fp32 copies, which take the stored precision, not bf16's."""
    load = {"load": str(copied / "run/checkpoints")}
    _, weights, _ = resume(tmp_path / "new", checkpoint=load, training={"precision": "bf16"})
    masters = {k.removeprefix("master."): t for k, t in weights.items() if "master." in k}
    assert masters
    reader = open_checkpoint(copied / "run/checkpoints")
    for key, master in masters.items():
        assert torch.equal(master, reader.read(key)), key
        assert torch.equal(master.bfloat16(), weights[key]), key


def test_its_own_checkpoint_wins_over_load(copied):
    """The same command goes on: `load` is where the run began, not where it is."""
    said, *_ = resume(copied, checkpoint={"load": str(copied / "run/checkpoints/iter_0000001")})
    assert "resumed from" in said and "at step 3" in said


def test_a_load_that_does_not_fit_is_refused(copied, tmp_path):
    load = {"load": str(copied / "run/checkpoints")}
    with pytest.raises(ConfigError, match="num_layers is 4 there and 2 here"):
        resume(tmp_path / "new", checkpoint=load, model={"num_layers": 2})
    with pytest.raises(ConfigError, match="trained with another tokenizer"):
        resume(tmp_path / "new", checkpoint=load, tokenizer="c" * 64)
    with pytest.raises(CheckpointError, match="nothing"):
        resume(tmp_path / "new", checkpoint={"load": str(tmp_path / "nothing")})


def test_without_anything_weights_are_fresh(tmp_path):
    said, weights, _ = resume(tmp_path)
    assert said == "fresh weights, seed 1234"
    assert weights["model.embed_tokens.weight"].any()


def damage(folder):
    path = next(folder.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_a_damaged_newest_checkpoint_falls_back_and_the_run_goes_on(copied):
    """The step of the damaged one is reached again, and saved again."""
    damage(copied / "run/checkpoints/iter_0000003")
    outcome, said = run.train(
        copied,
        training={"train_steps": 4},
        checkpoint={"save_interval": 1, "keep": 0},
        order=ORDER,
        tokenizer=IDENTITY,
    )
    assert "iter_0000002 at step 2" in said
    assert outcome.steps == 4
    folders = committed(copied / "run/checkpoints")
    assert [folder.name for folder in folders][:2] == ["iter_0000004", "iter_0000003"]
    CheckpointReader(folders[1]).verify()


def test_all_checkpoints_damaged_is_an_error(copied):
    for folder in committed(copied / "run/checkpoints"):
        damage(folder)
    kind, message = refusal(copied)
    assert kind is CheckpointError
    assert "iter_0000003" in message and "iter_0000001" in message


def test_a_checkpoint_says_what_it_is(finished):
    folder = finished / "checkpoints/iter_0000003"
    assert json.loads((folder / "config.json").read_text())["model"]["num_layers"] == 4
    reader = CheckpointReader(folder)
    assert reader.state["data_order"] == ORDER
    assert reader.manifest.layout == {
        "device": "cpu",
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "virtual_pipeline_parallel_size": 1,
        "data_parallel_size": 1,
        "sequence_parallel": False,
    }
    assert reader.state["tokenizer_identity"] == IDENTITY
    assert reader.state["optimizer"]["step"] == 3
    assert len(reader.rank_states) == 1


def test_another_layout_says_that_dropout_starts_anew(copied):
    with run.job(
        copied,
        order=ORDER,
        tokenizer=IDENTITY,
        parallel={"distributed_optimizer": True},
    ) as job:
        # Optimizer sharding is no other grid: the streams of the ranks are the same.
        assert "random streams restored" in state.restore(job)


def test_the_loss_scale_comes_back(tmp_path):
    training = {"train_steps": 4, "precision": "fp16"}
    optim = {"initial_loss_scale": 2.0**40, "loss_scale_window": 2}
    with run.job(tmp_path, training={**training, "stop_step": 3}, optim=optim) as job:
        loop.train(job, run_id="test", starts_from=state.restore(job))
        saved = job.optimizer.state()
    with run.job(tmp_path, training=training, optim=optim) as job:
        state.restore(job)
        assert job.optimizer.state() == saved
    assert saved["scale"] < 2.0**40
    assert not engine.rng_state() == {} and saved.keys() >= {"step", "scale", "growth_tracker"}
