"""Hugging Face folders that are refused: every problem is named, no code runs, nothing is left."""

import json
import os
import pickle
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_chimed.conversion import hf
from megatron_chimed.errors import DataError, UnsafeInputError
from tests.integration.hf_folders import edit_json, index_of, make_hf


def remove_shard(folder):
    (folder / sorted(set(index_of(folder)["weight_map"].values()))[1]).unlink()


def ghost_key(folder):
    index = index_of(folder)
    index["weight_map"]["model.ghost.weight"] = "model-00001-of-00005.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def unlisted_key(folder):
    index = index_of(folder)
    del index["weight_map"]["model.norm.weight"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def duplicate_tensor(folder):
    first = folder / "model-00001-of-00005.safetensors"
    tensors = load_file(first) | {"model.norm.weight": torch.ones(32)}
    save_file(tensors, first)


def overlapping_offsets(folder):
    path = folder / "model-00001-of-00005.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    entry = header["model.embed_tokens.weight"]
    entry["data_offsets"] = [number + 4 for number in entry["data_offsets"]]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def huge_header(folder):
    path = folder / "model-00001-of-00005.safetensors"
    path.write_bytes((200_000_000).to_bytes(8, "little") + path.read_bytes()[8:])
    os.truncate(path, 200_000_100)


def integer_weights(folder):
    path = folder / "model-00001-of-00005.safetensors"
    save_file({key: value.long() for key, value in load_file(path).items()}, path)


def not_a_number(folder):
    path = folder / "model-00001-of-00005.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][7, 3] = float("nan")
    save_file(tensors, path)


def key_twice(folder):
    path = folder / "model.safetensors.index.json"
    path.write_text(
        path.read_text().replace('"weight_map": {', '"weight_map": {"a": "x", "a": "y",')
    )


def both_kinds(folder):
    shutil.copy(folder / "model-00001-of-00005.safetensors", folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            remove_shard,
            r"1 problems:\n- .*00002-of-00005\.safetensors cannot be read: No such file",
        ),
        (ghost_key, r"1 problems:\n- the index lists model\.ghost\.weight in .*no such tensor"),
        (unlisted_key, r"1 problems:\n- .* holds model\.norm\.weight, which the index does not"),
        (duplicate_tensor, r"model\.norm\.weight is in .*00001.* and again in .*00005"),
        (overlapping_offsets, r"1 problems:\n- .*00001.*overlap, gap or wrong size"),
        (huge_header, r"1 problems:\n- .*00001.*header of 200000000 bytes"),
        (integer_weights, r"1 problems:\n- model\.embed_tokens\.weight is of torch\.int64"),
        (not_a_number, r"1 tensors hold NaN or infinity: model\.embed_tokens\.weight"),
        (key_twice, r"index\.json is not valid JSON: a occurs twice"),
        (both_kinds, r"1 problems:\n- .*index\.json and model\.safetensors are both there"),
        (
            lambda folder: edit_json(folder / "config.json", intermediate_size=64),
            r"6 problems:(\n- .*_proj\.weight has shape .*, config\.json says .*){6}$",
        ),
        (
            lambda folder: edit_json(folder / "config.json", num_hidden_layers=3),
            r"9 problems:(\n- model\.layers\.2\..* is missing){9}$",
        ),
        (
            lambda folder: edit_json(folder / "config.json", num_hidden_layers=1),
            r"9 problems:(\n- model\.layers\.1\..* is not a weight of this model){9}$",
        ),
        (
            lambda folder: edit_json(folder / "config.json", num_attention_heads=3),
            r"1 problems:\n- num_attention_heads \(3\) is not a multiple of num_key_value_heads",
        ),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing"),
        (
            lambda folder: (folder / "config.json").write_text("{"),
            r"config\.json is not valid JSON",
        ),
    ],
)
def test_bad_folders_are_refused_with_every_problem(tmp_path, spoil, message):
    make_hf(tmp_path / "hf")
    spoil(tmp_path / "hf")
    with pytest.raises(DataError) as caught:
        hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")
    assert re.search(message, str(caught.value)), str(caught.value)
    assert not (tmp_path / "ckpt").exists() or os.listdir(tmp_path / "ckpt") == []


def test_another_architecture_is_refused_with_all_reasons(tmp_path):
    make_hf(tmp_path / "hf")
    edit_json(
        tmp_path / "hf" / "config.json",
        architectures=["MistralForCausalLM"],
        hidden_act="gelu",
        attention_bias=True,
        mlp_bias=True,
        quantization_config={"bits": 4},
        rope_parameters={"rope_type": "dynamic", "factor": 8.0, "partial_rotary_factor": 0.5},
        vocab_size="300",
    )
    remove_shard(tmp_path / "hf")
    with pytest.raises(DataError) as caught:
        hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")
    for reason in (
        "9 problems",
        "['MistralForCausalLM'] ('llama'), not LlamaForCausalLM (Ziya, Llama 2 and 3",
        "hidden_act is 'gelu'",
        "attention projections have biases (attention_bias is set)",
        "feed-forward projections have biases",
        "weights are quantized",
        "method 'dynamic'; only linear, llama3, yarn",
        "partial_rotary_factor",
        "vocab_size is '300', not a whole number",
        "No such file or directory, and",
    ):
        assert reason in str(caught.value), reason


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder, index: index["weight_map"].update(w="../../etc/passwd"),
        lambda folder, index: index["weight_map"].update(w="/etc/passwd"),
        lambda folder, index: edit_json(folder / "config.json", auto_map={"AutoModel": "m.Model"}),
        lambda folder, index: (folder / "tokenizer_config.json").write_text('{"auto_map": {}}'),
    ],
)
def test_names_and_code_from_outside_are_refused(tmp_path, spoil):
    make_hf(tmp_path / "hf")
    index = index_of(tmp_path / "hf")
    spoil(tmp_path / "hf", index)
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsafeInputError, match="refused"):
        hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")
    assert not (tmp_path / "ckpt").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickles_are_not_opened(tmp_path, name):
    make_hf(tmp_path / "hf", shard="5GB")
    (tmp_path / "hf" / "model.safetensors").unlink()
    payload = pickle.dumps(Payload(tmp_path / "executed"))
    (tmp_path / "hf" / name).write_bytes(payload)
    with pytest.raises(UnsafeInputError, match=f"pickles .{name}.*safe_serialization=True"):
        hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")
    assert not (tmp_path / "executed").exists()
    (tmp_path / "hf" / name).unlink()
    with pytest.raises(DataError, match=r"holds neither model\.safetensors nor"):
        hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")
