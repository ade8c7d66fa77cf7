"""Hugging Face folders that say what cannot be, or hold what is no file: one message, at once."""

import json
import os
import resource
import socket

import pytest
import torch

from megatron_chimed.checkpoint.reader import open_checkpoint
from megatron_chimed.conversion import hf, hf_config, hf_rope
from megatron_chimed.errors import CheckpointError, ChimedError, ConfigError, DataError
from megatron_chimed.tokenizer import load_tokenizer
from tests.integration.commands import call
from tests.integration.hf_folders import SIZES, edit_json, edit_weights, make_hf
from tests.unit.tokenizer.samples import train_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_hf(tmp_path_factory.mktemp("made") / "hf", shard="5GB")


def save(model, folder):
    model.save_pretrained(folder, max_shard_size="30KB")
    return folder


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as held:
        here = os.getcwd()
        os.chdir(path.parent)  # the name of a socket has at most 107 bytes
        try:
            held.bind(path.name)
        finally:
            os.chdir(here)


ODD = {
    "a named pipe": os.mkfifo,
    "a socket": a_socket,
    "a folder": os.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}
FILES = (
    "config.json",
    "model.safetensors.index.json",
    "model-00001-of-00005.safetensors",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_named_and_not_waited_for(model, tmp_path, kind):
    for name in FILES:
        folder = save(model, tmp_path / name)
        (folder / "tokenizer.model").write_bytes(train_model(380))
        (folder / name).unlink(missing_ok=True)
        ODD[kind](folder / name)
        with pytest.raises(DataError) as caught:
            hf.import_hf(folder, tmp_path / "ckpt")
        assert f"{name} cannot be read: it is {kind}, not a file" in str(caught.value), name


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ODD)
def test_a_checkpoint_with_such_files_is_refused(model, tmp_path, kind):
    whole = hf.import_hf(save(model, tmp_path / "hf"), tmp_path / "ckpt").output
    for name in ("manifest.json", "index.json", "config.json", "rank_00000.safetensors"):
        content = (whole / name).read_bytes()
        (whole / name).unlink()
        ODD[kind](whole / name)
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(whole)
        said = "a link" if kind == "a device" and name != "manifest.json" else kind
        assert f"{name} cannot be read" in str(caught.value) or name == "manifest.json"
        assert f"it is {said}, not a file" in str(caught.value), name
        os.rmdir(whole / name) if kind == "a folder" else (whole / name).unlink()
        (whole / name).write_bytes(content)
    open_checkpoint(whole)


@pytest.mark.timeout(60)
def test_a_tokenizer_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "tokenizer.model")
    for path in (tmp_path, tmp_path / "tokenizer.model"):
        with pytest.raises(DataError, match="tokenizer.model cannot be read: it is a named pipe"):
            load_tokenizer(path)
    with pytest.raises(ConfigError, match="does not exist"):
        load_tokenizer(tmp_path / "none")


def test_a_file_of_json_that_is_far_too_large_is_not_read(model, tmp_path):
    folder = save(model, tmp_path / "hf")
    os.truncate(folder / "config.json", 20 << 30)  # takes no room
    with pytest.raises(DataError, match="it has 21474836480 bytes, more than"):
        hf.import_hf(folder, tmp_path / "ckpt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": "2"}, "num_key_value_heads is '2', not a whole number"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0, not a number from 1 to"),
        ({"num_key_value_heads": 3}, "is not a multiple of num_key_value_heads"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, not a number from 1 to"),
        ({"num_attention_heads": -4}, "num_attention_heads is -4, not a number from 1 to"),
        ({"num_attention_heads": True}, "num_attention_heads is True, not a whole number"),
        ({"hidden_size": 32.0}, "hidden_size is 32.0, not a whole number"),
        ({"hidden_size": 10**40}, f"hidden_size is {10**40}, not a number from 1 to 1048576"),
        ({"vocab_size": None}, "vocab_size is None, not a whole number"),
        (
            {"num_hidden_layers": 10**7},
            "num_hidden_layers is 10000000, not a number from 1 to 1024",
        ),
        ({"num_hidden_layers": 1000}, "- and 8942 more"),
        ({"intermediate_size": [48]}, r"intermediate_size is \[48\], not a whole number"),
        ({"max_position_embeddings": "128"}, "max_position_embeddings is '128', not a whole"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6', not a positive number"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0, not a positive number"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is 10+, not a positive number"),
        ({"rms_norm_eps": float("nan")}, "not valid JSON: NaN is not a JSON number"),
        ({"initializer_range": {}}, r"initializer_range is \{\}, not a positive number"),
        ({"head_dim": "8"}, "head_dim is '8', not a whole number"),
        ({"head_dim": 7}, "head_dim is 7: RoPE turns pairs"),
        ({"head_dim": 0}, "head_dim is 0, not a number from 1 to"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', not true or false"),
        ({"architectures": 5}, "the architecture is 5"),
        ({"model_type": []}, "the architecture is"),
        ({"eos_token_id": "2"}, "eos_token_id of config.json is '2', not an id"),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\], not an object"),
        ({"megatron_chimed": {"template": "x"}}, "its template cannot be read"),
        (
            {"architectures": ["LlamaForSequenceClassification"], "id2label": 5},
            "it has 2 labels: a classifier",
        ),
    ],
)
def test_a_config_that_cannot_be_is_one_message(model, tmp_path, changes, message):
    folder = save(model, tmp_path / "hf")
    edit_json(folder / "config.json", **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ChimedError, match=message) as caught:
        hf.import_hf(folder, tmp_path / "ckpt")
    assert isinstance(caught.value, DataError)
    assert len(str(caught.value).splitlines()) < 50
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_the_command_says_so_without_a_traceback(model, tmp_path):
    folder = save(model, tmp_path / "hf")
    edit_json(folder / "config.json", num_key_value_heads="2", num_attention_heads=0)
    words = ("import-hf", "--input", folder, "--output", tmp_path / "ckpt")
    done = call("convert_checkpoint", *words)
    assert done.code == 65
    assert "2 problems:" in done.err and "Traceback" not in done.err, done.err


LINEAR = {"type": "linear", "factor": 2.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MODERN = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}


@pytest.mark.parametrize(
    ("raw", "theta", "factor"),
    [
        ({}, 10000.0, 1.0),
        ({"rope_theta": 500, "rope_scaling": None}, 500.0, 1.0),
        ({"rope_theta": 500, "rope_scaling": LINEAR}, 500.0, 2.0),
        ({"rope_parameters": MODERN}, 500.0, 2.0),
        ({"rope_parameters": MODERN, "rope_theta": 500, "rope_scaling": LINEAR}, 500.0, 2.0),
        ({"rope_parameters": {"rope_theta": 500.0}, "rope_scaling": {}}, 500.0, 1.0),
        ({"rope_scaling": {"rope_type": "default", "factor": 1.0}}, 10000.0, 1.0),
    ],
)
def test_what_is_said_twice_may_be_said_alike(raw, theta, factor):
    fields, problems = hf_rope.read_rope(raw)
    assert problems == []
    assert (fields["rope_theta"], fields.get("rope_scaling_factor", 1.0)) == (theta, factor)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {"rope_parameters": MODERN, "rope_theta": 10000.0},
            "rope_parameters.rope_theta is 500.0 and rope_theta is 10000.0",
        ),
        (
            {"rope_parameters": MODERN, "rope_scaling": {"type": "linear", "factor": 4.0}},
            "rope_parameters.factor is 2.0 and rope_scaling.factor is 4.0",
        ),
        (
            {"rope_parameters": {"rope_theta": 500.0}, "rope_scaling": LINEAR},
            "rope_parameters without a type is 'default' and rope_scaling.type is 'linear'",
        ),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "default", "factor": 2.0}},
            "rope_scaling.type is 'linear' and rope_scaling.rope_type is 'default'",
        ),
        ({"rope_scaling": {"type": "default", "factor": 4}}, "RoPE has a factor 4, but its type"),
        ({"rope_scaling": {"type": "linear"}}, "'linear', but there is no factor"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor is '2', not a positive"),
        ({"rope_theta": "1e4"}, "rope_theta is '1e4', not a positive number"),
        ({"rope_theta": 0}, "rope_theta is 0, not a positive number"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear', not an object"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2}},
            "'dynamic'; only linear, llama3, yarn",
        ),
        ({"rope_scaling": {"rope_type": "yarn"}}, "'yarn', but there is no factor"),
        ({"rope_scaling": {**YARN, "attention_factor": 2.0}}, "attention_factor is 2.0; only YaRN"),
        ({"rope_scaling": {**YARN, "truncate": False}}, "truncate is false"),
        ({"rope_scaling": {**YARN, "mscale": 1.0}}, "RoPE has mscale"),
        (
            {"rope_scaling": {**YARN, "original_max_position_embeddings": 0}},
            "original_max_position_embeddings is 0, not a number of positions",
        ),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": None}}, "there is no low_freq_factor"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "set both above 0, the second"),
        ({"rope_scaling": {"type": ["x"]}}, r"by the method \['x'\]"),
        ({"partial_rotary_factor": 0.5}, "rotates only part of each head"),
    ],
)
def test_a_rotary_embedding_that_contradicts_itself_is_refused(raw, message):
    import re

    _, problems = hf_config.model_config_of(SIZES | raw)
    assert len(problems) == 1 and re.search(message, problems[0]), problems


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_stored_frequencies_have_to_be_those_of_the_config(tmp_path, dtype):
    scaling = {"rope_theta": 1e6, "rope_type": "linear", "factor": 4.0}
    make_hf(tmp_path / "hf", shard="5GB", rope_parameters=scaling)
    right = 1e6 ** -(torch.arange(0, 8, 2) / 8)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    # Older versions stored them before linear scaling.
    for number, stored in enumerate((right, right / 4)):
        edit_weights(tmp_path / "hf", lambda t, s=stored: t.update({name: s.to(dtype)}))
        done = hf.import_hf(tmp_path / "hf", tmp_path / f"ckpt{number}")
        assert f"{name} is computed by the model and was left out" in done.notes
    of_another_base = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    bad = torch.full((4,), torch.nan)
    for stored in (of_another_base, right / 2, right[:2], bad, right.flip(0)):
        edit_weights(tmp_path / "hf", lambda t, s=stored: t.update({name: s.to(dtype)}))
        with pytest.raises(DataError, match=f"{name} (contradicts config.json: its entry|is )"):
            hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")
    edit_weights(tmp_path / "hf", lambda t: t.update({name: of_another_base}))
    with pytest.raises(DataError) as caught:
        hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")
    assert "its entry 0 is 1, but rope_theta 1e+06 with factor 4 gives 0.25" in str(caught.value)
    assert json.loads((tmp_path / "hf/config.json").read_text())["rope_parameters"] == scaling
