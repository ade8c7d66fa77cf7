"""Tiny random models of every family, made and saved by transformers."""

import functools

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.distributed import jobs

SIZES = {
    "vocab_size": jobs.VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,  # clear logits, in which a wrong detail shows
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
# name -> (model type, further keys of its config)
FAMILIES = {
    "llama": ("llama", {}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama3 tied": ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 2}),
    "qwen2 yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3 tied": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
}


# Of our own models, so that each is trained at each layout; all at once last.
OPTIONS = {
    "QKV bias": {"qkv_bias": True},
    "QK norm": {"qk_norm": True, "kv_channels": 16},
    "tied": {"tie_word_embeddings": True},
    "two key heads": {"num_attention_heads": 16, "num_key_value_heads": 2, "kv_channels": 8},
    "all": {
        "qkv_bias": True,
        "qk_norm": True,
        "kv_channels": 16,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "rope_scaling": "llama3",
        "rope_scaling_factor": 8.0,
        "rope_original_max_positions": 16,
    },
}


@functools.cache
def make(name, head="lm", dtype=torch.float32):
    """A model whose norms and biases are random too."""
    model_type, changes = FAMILIES[name]
    labels = {} if head == "lm" else {"num_labels": 1, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, **{**SIZES, **changes, **labels})
    kind = AutoModelForCausalLM if head == "lm" else AutoModelForSequenceClassification
    torch.manual_seed(11)
    model = kind.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.uniform_(-0.5, 0.5)
                weight.add_(1.0 if _is_norm(model, weight) else 0.0)
    return model.to(dtype).eval()


def _is_norm(model, weight):
    return any(weight is m.weight for m in model.modules() if type(m).__name__.endswith("RMSNorm"))
