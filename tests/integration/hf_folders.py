"""Random Hugging Face folders, made by transformers, and ways to change them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # large enough that a wrong RoPE shows in the logits
}


def make_hf(folder, *, shard="30KB", dtype=torch.float32, **changes) -> LlamaForCausalLM:
    """A random LlamaForCausalLM, saved by transformers."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(SIZES | changes))).to(dtype)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.uniform_(0.5, 1.5)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def file_tensors(folder) -> dict[str, torch.Tensor]:
    return {
        key: value
        for path in sorted(Path(folder).glob("*.safetensors"))
        for key, value in load_file(path).items()
    }


def assert_same_bits(first, second):
    assert set(first) == set(second)
    for key, tensor in first.items():
        assert tensor.dtype is second[key].dtype, key
        assert torch.equal(tensor.view(torch.uint8), second[key].view(torch.uint8)), key


def edit_json(path, **changes):
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps(value))


def edit_weights(folder, edit):
    """Rewrites the single weight file of a folder after `edit(tensors)`."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def index_of(folder) -> dict:
    return json.loads((folder / "model.safetensors.index.json").read_text())
