"""The families of models that Hugging Face folders may hold: one table, and what it is asked.

All of them are the same decoder (`model.transformer`) with these options. To add a family whose
options exist, add a row; a model whose weights or computation differ needs code in `model` first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_chimed.config.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture of transformers."""

    model_type: str
    """transformers' name of the family, in config.json."""
    causal_lm: str
    """transformers' class of the language model."""
    scorer: str
    """transformers' class of the reward model."""
    models: str
    """Models that are of it, for people."""
    templates: tuple[str, ...]
    """Chat templates of its chat models; with them go the tokens at which an answer ends."""
    qkv_bias: bool = False
    """Queries, keys and values always have biases."""
    qk_norm: bool = False
    """Heads of queries and keys are always normed."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What a key means that config.json does not have, where it is not what it means for Llama."""
    written: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of an exported config.json."""

    def fits(self, model: ModelConfig) -> bool:
        """Whether a model has the options of this family."""
        return (model.qkv_bias, model.qk_norm) == (self.qkv_bias, self.qk_norm)

    def architecture(self, head: Literal["lm", "score"]) -> str:
        """Transformers' class of a model with this head."""
        return self.causal_lm if head == "lm" else self.scorer


_NO_DROPOUT = {"attention_dropout": 0.0}
_NO_WINDOW = {**_NO_DROPOUT, "use_sliding_window": False, "sliding_window": None}

FAMILIES = (
    Family(
        model_type="llama",
        causal_lm="LlamaForCausalLM",
        scorer="LlamaForSequenceClassification",
        models="Ziya, Llama 2 and 3, Yi, DeepSeek-LLM",
        templates=("llama3", "ziya"),
        written={
            "attention_bias": False,
            **_NO_DROPOUT,
            "mlp_bias": False,
            "pretraining_tp": 1,
        },
    ),
    Family(
        model_type="mistral",
        causal_lm="MistralForCausalLM",
        scorer="MistralForSequenceClassification",
        models="Mistral from v0.2 on, without a window",
        templates=("mistral",),
        defaults={
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
        written={**_NO_DROPOUT, "sliding_window": None},
    ),
    Family(
        model_type="qwen2",
        causal_lm="Qwen2ForCausalLM",
        scorer="Qwen2ForSequenceClassification",
        models="Qwen2, Qwen2.5",
        templates=("chatml",),
        qkv_bias=True,
        defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768},
        written=_NO_WINDOW,
    ),
    Family(
        model_type="qwen3",
        causal_lm="Qwen3ForCausalLM",
        scorer="Qwen3ForSequenceClassification",
        models="Qwen3 dense",
        templates=("qwen3", "qwen3_nothink"),
        qk_norm=True,
        defaults={
            "num_key_value_heads": 32,
            "max_position_embeddings": 32768,
            "head_dim": 128,
        },
        written={"attention_bias": False, **_NO_WINDOW},
    ),
)

# Parts of the names of models that are often asked for, and what they have that these have not.
_FOREIGN = (
    ("qwen3_5", "most of its layers are gated delta networks, not attention"),
    ("qwen3_next", "most of its layers are gated delta networks, not attention"),
    ("qwen3next", "most of its layers are gated delta networks, not attention"),
    ("moe", "its feed-forward layers are mixtures of experts"),
    ("mixtral", "its feed-forward layers are mixtures of experts"),
    ("deepseekv", "its attention is latent, and its layers are mixtures of experts"),
    ("baichuan", "13B has ALiBi instead of RoPE, and the head is normalized"),
    ("bloom", "it has ALiBi instead of RoPE"),
    ("glm", "RoPE turns part of each head, and layers have further norms"),
    ("gemma", "norms are scaled by 1 + weight, and embeddings by the width"),
    ("phi", "RoPE turns part of each head, or weights are fused in another order"),
)


def family_in(raw: Mapping[str, Any]) -> tuple[Family, Literal["lm", "score"]] | str:
    """The family and the head that a parsed `config.json` names, or why there is none.

    Without `architectures` it is the language model of its `model_type`; without both, of Llama.
    """
    named, model_type = raw.get("architectures"), raw.get("model_type")
    for family in FAMILIES:
        if model_type not in (None, family.model_type):
            continue
        if named == [family.causal_lm] or not named and (model_type or family is FAMILIES[0]):
            return family, "lm"
        if named == [family.scorer]:
            return family, "score"
    asked = f"{named} {model_type}".lower()
    reason = next((f": {why}" for part, why in _FOREIGN if part in asked), "")
    return f"the architecture is {named} ({model_type!r}), not {supported()}{reason}"


def supported() -> str:
    """All families, for a message."""
    names = [f"{family.causal_lm} ({family.models})" for family in FAMILIES]
    return f"{', '.join(names)}, or a ...ForSequenceClassification of these"


def family_of(model: ModelConfig, model_type: str | None = None) -> Family | None:
    """The family to export a model as, or None if none has its options.

    Args:
        model: The architecture.
        model_type: Of the family that it was imported from, where that was kept.
    """
    fitting = [family for family in FAMILIES if family.fits(model)]
    same = [family for family in fitting if family.model_type == model_type]
    return next(iter(same or fitting), None)
