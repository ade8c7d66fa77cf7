"""Nothing that was paid for is replaced: every command with an output, and folders of models."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from megatron_chimed.checkpoint.safetensors_io import EXPORT_METADATA
from megatron_chimed.tokenizer.saving import FILE_NAMES
from tests.integration import commands
from tests.integration.commands import assert_refused, call, snapshot


@pytest.fixture
def project(tmp_path):
    """Tokenizer, corpus and token files."""
    return commands.make_project(tmp_path / "project").parent


def outputs_that_exist(project):
    """What each command would replace: the path, the command, its words but for --overwrite."""
    corpus, prompts = project / "corpus.jsonl", project / "prompts.jsonl"
    prompts.write_text('{"prompt": "a", "completion": "b"}\n')
    for name in ("out.jsonl", "tokens/tokenizer.model", "hf/config.json", "plots/sources.png"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("paid for")
    for name in FILE_NAMES:
        (project / "tokens" / name).write_text("paid for")
    mark = json.dumps({"__metadata__": EXPORT_METADATA}, separators=(",", ":"))
    (project / "hf/model.safetensors").write_bytes(bytes(8) + mark.encode())
    model = ("--checkpoint", project / "nowhere")
    out = ("--output", project / "out.jsonl")
    yield project / "out.jsonl", "score", (*model, "--input", prompts, *out)
    yield project / "out.jsonl", "generate", (*model, "--prompts", prompts, *out)
    words = ("--input", corpus, "--vocab-size", 400, "--output", project / "tokens")
    yield project / "tokens", "train_tokenizer", words
    yield project / "hf", "convert_checkpoint", ("export-hf", *model, "--output", project / "hf")
    words = ("stats", project / "data", "--plots", project / "plots")
    yield project / "plots/sources.png", "inspect_dataset", words
    words = commands.preprocess_words(project, corpus, "data")
    yield project / "data.idx", "preprocess_data", words
    words = ("--inputs", project / "data", project / "data", "--output-prefix", project / "other")
    (project / "other.idx").write_text("paid for")
    yield project / "other.idx", "merge_datasets", words


def test_no_command_replaces_what_was_paid_for(project):
    """Before any work: the models that are named are not there."""
    for path, tool, words in outputs_that_exist(project):
        before = snapshot(project)
        assert_refused(call(tool, *words), 73, f"{path} exists already", "--overwrite")
        assert snapshot(project) == before, tool
    for _, tool, words in outputs_that_exist(project):
        done = call(tool, *words, "--overwrite")
        assert "exists already" not in done.err
        assert done.code == (74 if "--checkpoint" in words else 0), done.err


def test_a_model_is_not_replaced_by_its_tokenizer_or_an_export(project):
    """A folder that somebody has downloaded holds all that the commands make, and weights."""
    folder = project / "downloaded"
    folder.mkdir()
    for name in (*FILE_NAMES, "config.json", "generation_config.json"):
        (folder / name).write_text("{}")
    save_file({"x": np.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    before = snapshot(folder)
    words = ("--input", project / "corpus.jsonl", "--vocab-size", 400, "--output", folder)
    done = call("train_tokenizer", *words, "--overwrite")
    assert_refused(done, 73, "was not made by this command")
    words = ("export-hf", "--checkpoint", project / "run", "--output", folder, "--overwrite")
    assert_refused(call("convert_checkpoint", *words), 73, "was not made by this command")
    assert snapshot(folder) == before
