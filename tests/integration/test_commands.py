"""Mistakes as a user makes them: one message, the exit code, nothing written, nothing lost."""

import dataclasses
import json
import os
import re
import shutil
import signal
import sys

import pytest

from megatron_chimed import files
from megatron_chimed.checkpoint.load import stored_model_config
from megatron_chimed.checkpoint.reader import CheckpointReader
from megatron_chimed.checkpoint.save import Snapshot, save_checkpoint
from megatron_chimed.engine.agreement import Agreement
from tests.integration import commands
from tests.integration.commands import assert_refused, call, finish, snapshot, spawn, torchrun
from tests.unit.checkpoint.toy import whole
from tests.unit.tokenizer.samples import train_model

DATA_TOOLS = ("preprocess_data", "inspect_dataset", "train_tokenizer")
OTHER_TOOLS = (
    "doctor", "train", "generate", "score", "convert_checkpoint", "inspect_checkpoint", "launch"
)  # fmt: skip


@pytest.fixture
def project(tmp_path):
    """Tokenizer, corpus, token files and `run.yaml` of a run of 6 steps."""
    return commands.make_project(tmp_path / "project").parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project whose run is done, with checkpoints of steps 4 and 6; not to be changed."""
    config = commands.make_project(tmp_path_factory.mktemp("finished") / "project")
    done = call("train", "--config", config, "--checkpoint.save_interval", 2)
    assert done.code == 0, done.err
    assert sorted(os.listdir(config.parent / "run/checkpoints")) == [
        "iter_0000004", "iter_0000006", "latest",
    ]  # fmt: skip
    return config.parent


def append(path, text):
    path.write_text(path.read_text() + text)


def shorten(path, by=4):
    path.write_bytes(path.read_bytes()[:-by])


TP, PP = "--parallel.tensor_parallel_size", "--parallel.pipeline_parallel_size"


@pytest.mark.parametrize(
    ("words", "code", "fragments"),
    [
        ([TP, 2], 78, ["1 ranks cannot be split into groups", f"set {TP} 1"]),
        ([PP, 3], 78, ["1 ranks cannot be split into groups", "torchrun --nproc-per-node"]),
        ([TP, 3, "--dry-run", "--world-size", 3], 78, ["num_attention_heads (4)", f"Set {TP} 1"]),
        (
            [PP, 2, "--parallel.pipeline_split", "[1,2]", "--dry-run", "--world-size", 2],
            78,
            ["add up to 3", "Set for example --parallel.pipeline_split [1,1]"],
        ),
        (["--training.global_batch_size", 3], 78, ["Set --training.global_batch_size 4"]),
        (["--data.seq_length", 65], 78, ["Set --data.seq_length 64 or less"]),
        (["--model.hiden_size", 32], 78, ["hiden_size", "--help"]),
        (["--training.train_steps", "many"], 78, ["train_steps", "many"]),
        (["--optim.lr", -1], 78, ["--optim.lr is -1"]),
        (["--config", "nowhere.yaml"], 78, ["nowhere.yaml"]),
        (["--tokenizer", "nowhere.model"], 78, ["tokenizer 'nowhere.model' does not exist"]),
        (["--data.train", "nowhere"], 78, ["nowhere.bin does not exist", "--output-prefix"]),
        (["--model.vocab_size", 300], 78, ["has 400 ids", "Set --model.vocab_size 400 or more"]),
        (["--checkpoint.load", "nowhere"], 74, ["nowhere is not a folder"]),
        (["--output-dir", "{project}/run.yaml/run"], 73, ["run.yaml/run", "Set --output-dir"]),
    ],
)
def test_training_refuses_wrong_settings(project, words, code, fragments):
    before = snapshot(project)
    words = [str(word).format(project=project) for word in words]
    assert_refused(call("train", "--config", project / "run.yaml", *words), code, *fragments)
    assert snapshot(project) == before


@pytest.mark.parametrize(
    ("spoil", "code", "fragments"),
    [
        (lambda p: append(p / "run.yaml", "modle:\n  num_layers: 2\n"), 78, ["modle"]),
        (lambda p: append(p / "run.yaml", "data: ["), 78, ["line 25"]),
        (
            lambda p: (p / "tokenizer.model").write_bytes(train_model(399)),
            78,
            ["was made with tokenizer", "vocabulary 400", "Preprocess again"],
        ),
        (lambda p: (p / "tokenizer.model").write_bytes(b"x"), 78, ["tokenizer.model"]),
        (lambda p: shorten(p / "data.bin"), 65, ["data.bin", "truncated", "preprocess again"]),
        (lambda p: shorten(p / "data.idx"), 65, ["data.idx, byte 18", "preprocess again"]),
        (lambda p: shorten(p / "data.meta.json"), 65, ["data.meta.json is not valid JSON"]),
        (lambda p: (p / "data.idx").unlink(), 78, ["data.idx does not exist"]),
    ],
)
def test_training_refuses_wrong_files(project, spoil, code, fragments):
    spoil(project)
    before = snapshot(project)
    assert_refused(call("train", "--config", project / "run.yaml"), code, *fragments)
    assert snapshot(project) == before


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (
            ["--model.num_layers", 4],
            ["another architecture", "num_layers is 2 there and 4 here", "Set the model section"],
        ),
        (["--data.seq_length", 32], ["data.seq_length was 16 and is 32", "--checkpoint.load"]),
        (["--checkpoint.resume", "false"], ["holds checkpoints", "Give another --output-dir"]),
    ],
)
def test_a_run_does_not_go_on_as_another(finished, words, fragments):
    before = snapshot(finished)
    done = call("train", "--config", finished / "run.yaml", *words, "--training.train_steps", 8)
    assert_refused(done, 78, *fragments)
    assert snapshot(finished) == before


def test_weights_of_another_model_are_no_start(finished, tmp_path):
    words = ["--config", finished / "run.yaml", "--output-dir", tmp_path / "run"]
    words += ["--checkpoint.load", finished / "run"]
    done = call("train", *words, "--model.ffn_hidden_size", 64)
    assert_refused(done, 78, "another architecture", "ffn_hidden_size is 48 there and 64 here")
    other = commands.make_project(tmp_path / "other", model=train_model(399)).parent
    words += ["--tokenizer", other / "tokenizer.model", "--data.train", other / "data"]
    assert_refused(call("train", *words), 78, "another tokenizer", "Set --tokenizer to the one in")
    assert not (tmp_path / "run").exists()


def test_generation_and_export_refuse_another_architecture(finished, tmp_path):
    reader = CheckpointReader(finished / "run/checkpoints/iter_0000006")
    weights = [key for key in reader.tensors if not key.startswith("exp_avg")]
    shards = [whole(key, reader.read(key)) for key in weights]
    model = dataclasses.asdict(stored_model_config(reader))
    for iteration, section, message in (
        (1, model | {"num_experts": 8}, "does not describe a model"),
        (2, model | {"ffn_hidden_size": 64}, "mlp.up_proj.weight"),
    ):
        config = {"model": section}
        content = Snapshot(iteration=iteration, shards=shards, state={}, config=config)
        made = save_checkpoint(tmp_path / "strange", content, agreement=Agreement(), run_id="x")
        done = call("generate", "--checkpoint", made, "--prompt", "a")
        assert_refused(done, 74, message)
        words = ["--checkpoint", made, "--output", tmp_path / "hf"]
        assert_refused(call("convert_checkpoint", "export-hf", *words), 74, message)
    assert os.listdir(tmp_path) == ["strange"]


@pytest.fixture
def damaged(project, finished):
    """A copy of the finished run whose newest checkpoint, of step 6, has lost its end."""
    shutil.copytree(finished / "run", project / "run")
    shorten(project / "run/checkpoints/iter_0000006/rank_00000.safetensors")
    return project


def going_on(damaged, finished):
    """The command line of two more steps than the finished run had."""
    words = ["--config", finished / "run.yaml", "--output-dir", damaged / "run"]
    return [*words, "--training.train_steps", 8]


def test_a_run_knows_its_data_by_content_not_by_path(project, finished):
    shutil.copytree(finished / "run", project / "run")
    words = ["--config", project / "run.yaml", "--training.train_steps", 7]
    assert call("train", *words).code == 0, "the same data in another folder"
    lines = (project / "corpus.jsonl").read_text().splitlines()
    (project / "corpus.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    words_of_data = commands.preprocess_words(project, project / "corpus.jsonl", "data")
    done = call("preprocess_data", *words_of_data, "--overwrite")
    assert done.code == 0, done.err
    words[-1] = 8
    assert_refused(call("train", *words), 78, "order of samples would change", "data.train was")


def test_two_jobs_do_not_share_a_folder(project):
    (project / "run").mkdir()
    with files.locked(project / "run/.lock", "run abc on host, process 1"):
        done = call("train", "--config", project / "run.yaml")
        assert_refused(done, 73, "in use by run abc on host, process 1", "--output-dir")
    assert call("train", "--config", project / "run.yaml").code == 0


def test_leftovers_of_killed_saves_are_removed(project):
    left = project / "run/checkpoints/.tmp-iter_0000002-0badc0de"
    left.mkdir(parents=True)
    assert call("train", "--config", project / "run.yaml").code == 0
    assert not left.exists()


def test_a_run_goes_on_from_before_a_truncated_checkpoint(damaged, finished, caplog):
    done = call("train", *going_on(damaged, finished))
    assert done.code == 0, done.err
    warning = r"skipping a damaged checkpoint: .*iter_0000006/rank_00000.safetensors has \d+ bytes"
    assert re.search(warning, caplog.text)
    assert "iter_0000004 at step 4" in done.out
    assert commands.train_steps(damaged / "run") == list(range(1, 9))
    CheckpointReader(damaged / "run/checkpoints/iter_0000008").verify()


def test_a_damaged_checkpoint_is_not_in_the_way_of_its_successor(damaged, finished):
    done = call("train", *going_on(damaged, finished), "--checkpoint.save_interval", 2)
    assert done.code == 0, done.err
    CheckpointReader(damaged / "run/checkpoints/iter_0000006").verify()


def test_a_truncated_checkpoint_alone_is_an_error(damaged, tmp_path):
    shutil.rmtree(damaged / "run/checkpoints/iter_0000004")
    before = snapshot(damaged)
    shard, sizes = "iter_0000006/rank_00000.safetensors", "the manifest says"
    assert_refused(call("train", "--config", damaged / "run.yaml"), 74, shard, sizes)
    done = call("generate", "--checkpoint", damaged / "run", "--prompt", "a")
    assert_refused(done, 74, shard, sizes)
    words = ["--checkpoint", damaged / "run", "--output", tmp_path / "hf"]
    assert_refused(call("convert_checkpoint", "export-hf", *words), 74, shard, sizes)
    assert snapshot(damaged) == before and not (tmp_path / "hf").exists()


def test_generation_takes_no_older_checkpoint_for_the_newest(damaged):
    done = call("generate", "--checkpoint", damaged / "run", "--prompt", "a")
    assert_refused(done, 74, "iter_0000006/rank_00000.safetensors")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no document in"),
        ("\n \n", "no document in"),
        ('{"text": ""}\n', "no document in"),
        ('{"text": "a"}\n{"text": "b"\n', "bad.jsonl:2:"),
        ('{"text": "a"}\n\n["b"]\n', "bad.jsonl:3:"),
        ('{"body": "a"}\n', "no format fits its rows, whose keys are 'body'"),
    ],
)
def test_preprocessing_refuses_bad_rows(project, text, message):
    (project / "bad.jsonl").write_text(text)
    before = snapshot(project)
    words = commands.preprocess_words(project, project / "bad.jsonl", "new")
    assert_refused(call("preprocess_data", *words), 65, message)
    assert snapshot(project) == before


def test_prompts_are_read_before_the_model(finished, tmp_path):
    words = ["--checkpoint", finished / "run", "--output", tmp_path / "out.jsonl"]
    (tmp_path / "empty.jsonl").touch()
    done = call("generate", *words, "--prompts", tmp_path / "empty.jsonl")
    assert_refused(done, 65, "empty.jsonl holds no rows")
    assert os.listdir(tmp_path) == ["empty.jsonl"]


def below_a_file(project):
    """What each command would write, below a file instead of a folder."""
    out = project / "run.yaml" / "out"
    corpus = project / "corpus.jsonl"
    (project / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    yield commands.preprocess_words(project, corpus, "run.yaml/out"), "preprocess_data"
    yield ["--input", corpus, "--vocab-size", 400, "--output", out], "train_tokenizer"
    yield ["export-hf", "--checkpoint", project / "run", "--output", out], "convert_checkpoint"
    prompts = ["--prompts", project / "prompts.jsonl", "--output", out / "out.jsonl"]
    yield ["--checkpoint", project / "run", *prompts], "generate"


def test_output_that_cannot_be_written(project, finished):
    shutil.copytree(finished / "run", project / "run")
    for words, tool in below_a_file(project):
        before = snapshot(project)
        assert_refused(call(tool, *words), 73, "run.yaml")
        assert snapshot(project) == before, tool


def test_nothing_is_written_over(project, finished):
    hf, imported = project / "hf", project / "imported"
    export = ["export-hf", "--checkpoint", finished / "run", "--output", hf]
    back = ["import-hf", "--input", hf, "--output", imported]
    data = commands.preprocess_words(project, project / "corpus.jsonl", "data")
    for words in (export, back):
        done = call("convert_checkpoint", *words)
        assert done.code == 0, done.err
    before = snapshot(project)
    assert_refused(call("convert_checkpoint", *export), 73, f"{hf} exists already", "--overwrite")
    assert_refused(call("convert_checkpoint", *back), 73, "iter_0000000 exists", "save elsewhere")
    assert_refused(call("preprocess_data", *data), 73, "data.idx exists", "--overwrite")
    assert snapshot(project) == before


def test_every_command_explains_itself(project):
    """And the commands, as processes, end as they do in this one."""
    importing = (sys.executable, "-X", "importtime")
    helps = {
        tool: spawn(tool, "--help", launcher=importing) for tool in (*DATA_TOOLS, *OTHER_TOOLS)
    }
    refused = {
        "train": spawn("train", "--config", project / "run.yaml", "--model.hiden_size", "32"),
        "inspect_dataset": spawn("inspect_dataset", "check", project / "nowhere"),
    }
    for tool, process in helps.items():
        done = finish(process)
        assert done.code == 0, done.err
        assert f"{tool}.py" in done.out and "--" in done.out
        imported = {line.rpartition("|")[2].strip() for line in done.err.splitlines()}
        assert "argparse" in imported
        if tool in DATA_TOOLS:
            assert not imported & {"torch", "megatron", "transformers"}, tool
    for tool, message in (("train", "hiden_size"), ("inspect_dataset", "there is neither")):
        assert_refused(finish(refused[tool]), 78, message)


def test_a_rank_says_who_it_is(project, monkeypatch):
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    done = call("train", "--config", project / "run.yaml", TP, 4)
    assert done.code == 78
    assert done.err.startswith("[rank 1] ConfigError: 2 ranks cannot be split into groups")
    assert not (project / "run").exists()


@pytest.mark.timing
@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
def test_a_killed_rank_ends_the_job_and_the_same_command_resumes_it(project):
    words = ["--config", project / "run.yaml", "--training.train_steps", 60]
    words += ["--checkpoint.save_interval", 10, TP, 2, "--parallel.timeout_seconds", 20]
    job = spawn("train", *words, launcher=torchrun(2))
    commands.read_until(job, "checkpoint: ")
    os.kill(commands.child_of_rank(job, 1), signal.SIGKILL)
    killed = finish(job, timeout=40)
    assert killed.code != 0 and "Signal 9 (SIGKILL)" in killed.err
    assert "done: " not in killed.out
    resumed = finish(spawn("train", *words, launcher=torchrun(2)))
    assert resumed.code == 0, resumed.err
    start = re.search(r"resumed from \S+/iter_(\d+) at step (\d+)", resumed.out)
    assert int(start[1]) == int(start[2]) >= 10
    assert commands.train_steps(project / "run") == list(range(1, 61))
    state = json.loads((project / "run/checkpoints/iter_0000060/state.json").read_text())
    assert state["state"]["progress"]["consumed_samples"] == 60 * 4
