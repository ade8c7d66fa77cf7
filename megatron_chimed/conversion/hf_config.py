"""`config.json` of a Hugging Face LLaMA or of its reward model, and our ModelConfig.

Source of the keys: transformers' LlamaConfig, versions 4 (`rope_theta`, `rope_scaling`,
`torch_dtype`) and 5 (`rope_parameters`, `dtype`); both can read what is written here. The stray
`layer_norm_eps` of the Ziya configs is never read: RMSNorm's epsilon is `rms_norm_eps`.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from megatron_chimed import files
from megatron_chimed.checkpoint.safetensors_io import unique_keys
from megatron_chimed.config.model import LARGEST, ModelConfig
from megatron_chimed.conversion.hf_rope import is_positive, read_rope
from megatron_chimed.errors import ConfigError, DataError, UnsafeInputError, reword
from megatron_chimed.model.reward_head import SCORE_KEY

ARCHITECTURES: dict[str, Literal["lm", "score"]] = {
    "LlamaForCausalLM": "lm",
    "LlamaForSequenceClassification": "score",
}
"""transformers' class -> our head; with one label, the second is a reward model."""
TOKEN_ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "ffn_hidden_size",
}
_OPTIONAL_SIZES = {
    "num_key_value_heads": "num_key_value_heads",
    "max_position_embeddings": "max_position_embeddings",
}
_REALS = {"rms_norm_eps": ("rms_norm_eps", 1e-6), "initializer_range": ("init_std", 0.02)}
_REFUSED = {
    "attention_bias": "the attention projections have biases",
    "mlp_bias": "the feed-forward projections have biases",
    "quantization_config": "the weights are quantized",
}


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object in which no key occurs twice.

    Raises:
        DataError: Missing, not a plain file, not JSON, not an object, or a key occurs twice.
    """
    try:
        value = json.loads(
            files.read_small(path).decode("utf-8"),
            object_pairs_hook=unique_keys,
            parse_constant=_refuse_constant,
        )
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Give a complete Hugging Face folder.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Restore the file.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}. Restore the file.") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}, not a JSON object.")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def refuse_remote_code(folder: Path) -> None:
    """Refuses a folder that asks to run its own code.

    Raises:
        UnsafeInputError: A config names classes to import from the folder (`auto_map`).
    """
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        if path.is_file() and "auto_map" in read_json_object(path):
            raise UnsafeInputError(
                f"{path} has an `auto_map`: it asks to run Python code that came with the weights. "
                "It was refused. If the model is a plain LLaMA, remove that entry."
            )


def model_config_of(raw: Mapping[str, Any]) -> tuple[ModelConfig | None, list[str]]:
    """Our config from a parsed `config.json`, or all reasons why there is none."""
    architecture, problems = _check_architecture(raw)
    problems += [f"{what} ({key} is set)" for key, what in _REFUSED.items() if raw.get(key)]
    numbers = _read_numbers(raw, problems)
    rope, rope_problems = read_rope(raw)
    problems += rope_problems
    if problems or architecture is None:
        return None, problems
    numbers.setdefault("num_key_value_heads", numbers["num_attention_heads"])
    try:
        config = ModelConfig(
            **numbers,
            rope_theta=rope.theta,
            rope_scaling_factor=rope.factor,
            head=ARCHITECTURES[architecture],
        )
    except ConfigError as error:
        return None, [_in_their_words(str(error))]
    if raw.get("head_dim") not in (None, config.head_dim):
        return None, [f"head_dim is {raw['head_dim']}, not hidden_size / heads ({config.head_dim})"]
    return config, []


def _read_numbers(raw: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The numbers of our config, by our names; adds to `problems`."""
    numbers: dict[str, Any] = {}
    for theirs, ours in (*_SIZES.items(), *_OPTIONAL_SIZES.items()):
        value = raw.get(theirs)
        if value is None and theirs in _OPTIONAL_SIZES:
            continue
        most = LARGEST[ours]
        if type(value) is not int:
            problems.append(f"{theirs} is {value!r}, not a whole number")
        elif not 1 <= value <= most:
            problems.append(f"{theirs} is {value}, not a number from 1 to {most}")
        numbers[ours] = value
    for theirs, (ours, default) in _REALS.items():
        value = default if raw.get(theirs) is None else raw[theirs]
        if not is_positive(value):
            problems.append(f"{theirs} is {value!r}, not a positive number")
        numbers[ours] = value
    if type(raw.get("tie_word_embeddings", False)) is not bool:
        problems.append(f"tie_word_embeddings is {raw['tie_word_embeddings']!r}, not true or false")
    return numbers


def _in_their_words(message: str) -> str:
    theirs = {ours: theirs for theirs, ours in _SIZES.items()}
    fields = [field.name for field in dataclasses.fields(ModelConfig)]
    return reword(
        message.replace("--model.", "model."),
        {f"model.{name}": theirs.get(name, name) for name in fields},
    )


def to_hf_config(
    model: ModelConfig, *, dtype: torch.dtype, token_ids: Mapping[str, Any]
) -> dict[str, Any]:
    """The `config.json` of a LlamaForCausalLM or LlamaForSequenceClassification.

    The latter scores the last token that is not `pad_token_id`, so it needs that id.
    """
    scaling = None
    if model.rope_scaling_factor != 1.0:
        # Exactly these two keys: the first versions with scaling refuse any other.
        scaling = {"type": "linear", "factor": model.rope_scaling_factor}
    names = {head: architecture for architecture, head in ARCHITECTURES.items()}
    labels = {"id2label": {"0": "score"}, "label2id": {"score": 0}} if model.head == "score" else {}
    return {
        "architectures": [names[model.head]],
        **labels,
        "model_type": "llama",
        **{theirs: getattr(model, ours) for theirs, ours in _SIZES.items()},
        "num_key_value_heads": model.num_key_value_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": model.rms_norm_eps,
        "rope_theta": model.rope_theta,
        "rope_scaling": scaling,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "initializer_range": model.init_std,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
        **token_ids,
    }


def weight_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every weight, in the order of the model."""
    hidden, ffn, vocab_size = model.hidden_size, model.ffn_hidden_size, model.known_vocab_size
    kv_width = model.num_key_value_heads * model.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab_size, hidden)}
    for layer in range(model.num_layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}input_layernorm.weight": (hidden,),
            f"{prefix}self_attn.q_proj.weight": (hidden, hidden),
            f"{prefix}self_attn.k_proj.weight": (kv_width, hidden),
            f"{prefix}self_attn.v_proj.weight": (kv_width, hidden),
            f"{prefix}self_attn.o_proj.weight": (hidden, hidden),
            f"{prefix}post_attention_layernorm.weight": (hidden,),
            f"{prefix}mlp.gate_proj.weight": (ffn, hidden),
            f"{prefix}mlp.up_proj.weight": (ffn, hidden),
            f"{prefix}mlp.down_proj.weight": (hidden, ffn),
        }
    shapes["model.norm.weight"] = (hidden,)
    if model.head == "score":
        return shapes | {SCORE_KEY: (1, hidden)}
    return shapes | {"lm_head.weight": (vocab_size, hidden)}


def _architecture(raw: Mapping[str, Any]) -> str | None:
    """The class of transformers, or None if it is not supported."""
    architectures = raw.get("architectures") or ["LlamaForCausalLM"]
    known = [name for name in ARCHITECTURES if architectures == [name]]
    return known[0] if known and raw.get("model_type", "llama") == "llama" else None


def _check_architecture(raw: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """The class of transformers, and what is wrong with the architecture."""
    problems = []
    architecture = _architecture(raw)
    if architecture is None:
        problems.append(
            f"the architecture is {raw.get('architectures')} ({raw.get('model_type')!r}), not "
            f"{' or '.join(ARCHITECTURES)}"
        )
    named = raw.get("id2label")
    # transformers' default is two
    labels = len(named) if named and isinstance(named, Mapping) else raw.get("num_labels", 2)
    if architecture is not None and ARCHITECTURES[architecture] == "score" and labels != 1:
        problems.append(f"it has {labels} labels: a classifier, not a reward model (num_labels 1)")
    if raw.get("hidden_act", "silu") != "silu":
        problems.append(f"hidden_act is {raw['hidden_act']!r}, not 'silu'")
    return architecture, problems
