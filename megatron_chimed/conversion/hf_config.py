"""`config.json` of a Hugging Face model or of its reward model, and our ModelConfig.

Source of the keys: transformers' LlamaConfig and those of the other `families`, versions 4
(`rope_theta`, `rope_scaling`, `torch_dtype`) and 5 (`rope_parameters`, `dtype`); both can read what
is written here. The stray `layer_norm_eps` of the Ziya configs is never read: RMSNorm's epsilon is
`rms_norm_eps`.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from megatron_chimed import files
from megatron_chimed.checkpoint.safetensors_io import unique_keys
from megatron_chimed.config.model import LARGEST, ModelConfig
from megatron_chimed.conversion.families import Family, family_in, family_of
from megatron_chimed.conversion.hf_rope import is_positive, read_rope, written_rope
from megatron_chimed.errors import ConfigError, DataError, UnsafeInputError, reword
from megatron_chimed.model.parallel import EMBEDDING_KEY, HEAD_KEY
from megatron_chimed.model.reward_head import SCORE_KEY

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
    "head_dim": "kv_channels",
}
_REALS = {"rms_norm_eps": ("rms_norm_eps", 1e-6), "initializer_range": ("init_std", 0.02)}
_REFUSED = {
    "mlp_bias": "the feed-forward projections have biases",
    "quantization_config": "the weights are quantized",
    "num_experts": "the feed-forward layers are mixtures of experts",
    "num_local_experts": "the feed-forward layers are mixtures of experts",
    "use_sliding_window": "attention sees only a window of the earlier tokens",
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
    found = family_in(raw)
    if isinstance(found, str):
        problems, completed = [found], raw
    else:
        problems, completed = _check_options(raw, *found), {**found[0].defaults, **raw}
    if raw.get("hidden_act", "silu") != "silu":
        problems.append(f"hidden_act is {raw['hidden_act']!r}, not 'silu'")
    if raw.get("attention_bias") and (isinstance(found, str) or not found[0].qkv_bias):
        problems.append("the attention projections have biases (attention_bias is set)")
    problems += [f"{what} ({key} is set)" for key, what in _REFUSED.items() if raw.get(key)]
    numbers = _read_numbers(completed, problems)
    rope, rope_problems = read_rope(completed)
    problems += rope_problems
    if problems or isinstance(found, str):
        return None, problems
    family, head = found
    numbers.setdefault("num_key_value_heads", numbers["num_attention_heads"])
    if numbers.get("kv_channels") == numbers["hidden_size"] / numbers["num_attention_heads"]:
        del numbers["kv_channels"]
    try:
        config = ModelConfig(
            **numbers,
            **rope,
            qkv_bias=family.qkv_bias,
            qk_norm=family.qk_norm,
            tie_word_embeddings=raw.get("tie_word_embeddings", False),
            head=head,
        )
    except ConfigError as error:
        return None, [_in_their_words(str(error))]
    return config, []


def _check_options(raw: Mapping[str, Any], family: Family, head: str) -> list[str]:
    """What the keys of a known family ask for that is not supported."""
    problems = []
    named = raw.get("id2label")
    # transformers' default is two
    labels = len(named) if named and isinstance(named, Mapping) else raw.get("num_labels", 2)
    if head == "score" and labels != 1:
        problems.append(f"it has {labels} labels: a classifier, not a reward model (num_labels 1)")
    usual = family.defaults.get("sliding_window")
    window = raw.get("sliding_window", usual)
    if usual is not None and window is not None:
        said = "is" if "sliding_window" in raw else "is left out, which means"
        problems.append(
            f"attention sees only a window of the earlier tokens (sliding_window {said} {window}; "
            "only null is supported)"
        )
    layers = raw.get("layer_types") or []
    if others := sorted({str(kind) for kind in layers if kind != "full_attention"}):
        problems.append(f"layer_types has {', '.join(others)}; only full_attention is supported")
    return problems


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
    theirs = {ours: theirs for theirs, ours in (*_SIZES.items(), *_OPTIONAL_SIZES.items())}
    fields = [field.name for field in dataclasses.fields(ModelConfig)]
    return reword(
        message.replace("--model.", "model."),
        {f"model.{name}": theirs.get(name, name) for name in fields},
    )


def to_hf_config(
    model: ModelConfig,
    *,
    dtype: torch.dtype,
    token_ids: Mapping[str, Any],
    family: Family | None = None,
) -> dict[str, Any]:
    """The `config.json` of a language model, or of a reward model with one label.

    The latter scores the last token that is not `pad_token_id`, so it needs that id.

    Args:
        model: The architecture.
        dtype: Of the weights.
        token_ids: Special ids.
        family: To write it as; None: the first that fits.
    """
    family = family or family_of(model)
    assert family is not None, "an export checks that a family fits"
    labels = {"id2label": {"0": "score"}, "label2id": {"score": 0}} if model.head == "score" else {}
    windows = {"max_window_layers": model.num_layers} if family.qkv_bias or family.qk_norm else {}
    return {
        "architectures": [family.architecture(model.head)],
        **labels,
        "model_type": family.model_type,
        **{theirs: getattr(model, ours) for theirs, ours in _SIZES.items()},
        "num_key_value_heads": model.num_key_value_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": model.rms_norm_eps,
        **written_rope(model),
        "hidden_act": "silu",
        **family.written,
        **windows,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tie_word_embeddings,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
        **token_ids,
    }


def weight_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every weight, in the order of the model."""
    hidden, ffn, vocab_size = model.hidden_size, model.ffn_hidden_size, model.known_vocab_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING_KEY: (vocab_size, hidden)}
    for layer in range(model.num_layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}input_layernorm.weight": (hidden,),
            **_attention_shapes(model, f"{prefix}self_attn."),
            f"{prefix}post_attention_layernorm.weight": (hidden,),
            f"{prefix}mlp.gate_proj.weight": (ffn, hidden),
            f"{prefix}mlp.up_proj.weight": (ffn, hidden),
            f"{prefix}mlp.down_proj.weight": (hidden, ffn),
        }
    shapes["model.norm.weight"] = (hidden,)
    if model.head == "score":
        return shapes | {SCORE_KEY: (1, hidden)}
    return shapes if model.has_tied_head else shapes | {HEAD_KEY: (vocab_size, hidden)}


def _attention_shapes(model: ModelConfig, prefix: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    widths = {"q_proj": model.query_width, "k_proj": model.kv_width, "v_proj": model.kv_width}
    for name, width in widths.items():
        shapes[f"{prefix}{name}.weight"] = (width, model.hidden_size)
        if model.qkv_bias:
            shapes[f"{prefix}{name}.bias"] = (width,)
    shapes[f"{prefix}o_proj.weight"] = (model.hidden_size, model.query_width)
    if model.qk_norm:
        shapes |= {f"{prefix}{name}.weight": (model.head_dim,) for name in ("q_norm", "k_norm")}
    return shapes
