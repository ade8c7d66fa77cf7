"""Sizes and numerics of a decoder of the LLaMA kind: Ziya, Llama, Mistral, Qwen2, Qwen3."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from megatron_chimed.config.parallel import ModelSizes
from megatron_chimed.errors import ConfigError
from megatron_chimed.field_types import check_types

# Only typing errors exceed these: building such a model would take hours, or all memory.
LARGEST = MappingProxyType(
    {
        "vocab_size": 1 << 24,
        "hidden_size": 1 << 20,
        "num_layers": 1024,
        "num_attention_heads": 1 << 16,
        "num_key_value_heads": 1 << 16,
        "kv_channels": 1 << 16,
        "ffn_hidden_size": 1 << 22,
        "max_position_embeddings": 1 << 26,
        "rope_original_max_positions": 1 << 26,
    }
)

LARGEST_WHOLE_LOGITS = 1 << 30
"""Bytes of fp32 logits of 4,096 tokens, above which a loss is computed in chunks by default. That
is a vocabulary above 65,536: the rule knows no batch and no layout, so neither changes a bit."""
CHUNK_TOKENS = 1024

# Settings that determine what the tensors mean. Dropout, back end and recomputation may change.
_ARCHITECTURE = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "ffn_hidden_size",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling_factor",
)
# The same, which checkpoints of earlier versions do not state: their models have the defaults.
_LATER_ARCHITECTURE = (
    "kv_channels",
    "qkv_bias",
    "qk_norm",
    "tie_word_embeddings",
    "rope_scaling",
    "rope_original_max_positions",
    "rope_low_frequency_factor",
    "rope_high_frequency_factor",
    "rope_beta_fast",
    "rope_beta_slow",
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder of the LLaMA kind; the defaults are Ziya-13B's."""

    vocab_size: int | None = None
    """True vocabulary, without padding for tensor parallelism; null: that of the weights that a run
    starts from, or of its tokenizer."""
    hidden_size: int = 5120
    """Width h of the residual stream."""
    num_layers: int = 40
    """Decoder layers."""
    num_attention_heads: int = 40
    """Query heads n."""
    num_key_value_heads: int = 40
    """Key and value heads; fewer than the query heads is grouped-query attention."""
    kv_channels: int | None = None
    """Width d of one head; null: hidden_size / num_attention_heads."""
    qkv_bias: bool = False
    """Queries, keys and values have biases, as in Qwen2."""
    qk_norm: bool = False
    """Each head of queries and keys is normed before RoPE, as in Qwen3."""
    tie_word_embeddings: bool = False
    """The embedding is the head of the language model too; a reward model has a head of its own."""
    ffn_hidden_size: int = 13824
    """Width f of the SwiGLU product."""
    max_position_embeddings: int = 2048
    """Longest sequence that the model supports, in tokens."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: Literal["linear", "llama3", "yarn"] = "linear"
    """How the frequencies change for contexts longer than those of pre-training."""
    rope_scaling_factor: float = 1.0
    """How much longer: `linear` divides all frequencies by it, the others low ones; 1.0 is off."""
    rope_original_max_positions: int | None = None
    """Positions of pre-training; `llama3` and `yarn` need it."""
    rope_low_frequency_factor: float = 1.0
    """`llama3`: frequencies of fewer turns over those positions are divided by the factor."""
    rope_high_frequency_factor: float = 4.0
    """`llama3`: frequencies of more turns stay; those between are interpolated."""
    rope_beta_fast: float = 32.0
    """`yarn`: frequencies of more turns over those positions stay."""
    rope_beta_slow: float = 1.0
    """`yarn`: frequencies of fewer turns are divided by the factor."""
    init_std: float = 0.02
    """Standard deviation of initial weights; residual projections: / sqrt(2 layers)."""
    attention_dropout: float = 0.0
    """Dropout of attention probabilities."""
    hidden_dropout: float = 0.0
    """Dropout of each block's contribution to the residual stream."""
    attention_backend: Literal["sdpa", "reference"] = "sdpa"
    """`sdpa`: torch's fused attention; `reference`: the formula, for comparison."""
    head: Literal["lm", "score"] = "lm"
    """Output of the model: logits of the next token, or one score, as in a reward model."""
    loss_chunk_tokens: int | None = None
    """Tokens whose logits are computed at a time in training: saves memory, at the cost of a fourth
    product with the head beside the usual three; 0: all at once; null: 1024 for a vocabulary above
    65,536, else all at once."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Recomputed in backward: nothing; norms, RoPE and the SwiGLU product; whole layers."""

    def __post_init__(self) -> None:
        check_types(self, "model")
        for name, most in LARGEST.items():
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--model.{name} is {value}: it must be at least 1.")
            if value is not None and value > most:
                raise ConfigError(
                    f"--model.{name} is {value}: no model is as large; the limit here is {most}. "
                    "Check the number."
                )
        self._check_heads()
        self._check_rope()
        if self.loss_chunk_tokens is not None and self.loss_chunk_tokens < 0:
            raise ConfigError(
                f"--model.loss_chunk_tokens is {self.loss_chunk_tokens}: set a number of tokens, "
                "or 0 for all at once."
            )
        for name in ("attention_dropout", "hidden_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"--model.{name} is {getattr(self, name)}: set it in [0, 1).")
        for name in ("rms_norm_eps", "rope_theta", "init_std"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ConfigError(f"--model.{name} is {getattr(self, name)}: set it above 0.")

    def _check_heads(self) -> None:
        if self.kv_channels is None and (
            self.hidden_size % self.num_attention_heads or self.head_dim % 2
        ):
            raise ConfigError(
                f"hidden_size ({self.hidden_size}) / num_attention_heads "
                f"({self.num_attention_heads}) must be a whole, even head width: RoPE turns pairs. "
                f"Set --model.hidden_size to a multiple of {2 * self.num_attention_heads}, or give "
                "the width of a head with --model.kv_channels."
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"--model.kv_channels is {self.kv_channels}: RoPE turns pairs. Set an even width."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads}): query heads share key heads in "
                "equal groups. Set --model.num_key_value_heads to a divisor."
            )

    def _check_rope(self) -> None:
        if not 1.0 <= self.rope_scaling_factor < math.inf:
            raise ConfigError(
                f"--model.rope_scaling_factor is {self.rope_scaling_factor}: scaling divides "
                "frequencies by it. Set 1.0 (off) or more."
            )
        if self.rope_scaling != "linear" and self.rope_original_max_positions is None:
            raise ConfigError(
                f"--model.rope_scaling {self.rope_scaling} compares frequencies with the positions "
                "of pre-training, which are not given. Set --model.rope_original_max_positions."
            )
        for low, high in (
            ("rope_low_frequency_factor", "rope_high_frequency_factor"),
            ("rope_beta_slow", "rope_beta_fast"),
        ):
            if not 0.0 < getattr(self, low) < getattr(self, high) < math.inf:
                raise ConfigError(
                    f"--model.{low} is {getattr(self, low)} and --model.{high} is "
                    f"{getattr(self, high)}: set both above 0, the second above the first."
                )

    def with_vocabulary(self, size: int) -> "ModelConfig":
        """The same with this vocabulary, unless one is set."""
        return self if self.vocab_size else dataclasses.replace(self, vocab_size=size)

    @property
    def known_vocab_size(self) -> int:
        """True vocabulary, of a model that is built or stored; `vocab_size` is set there."""
        assert self.vocab_size is not None, "vocab_size is set before a model is built or stored"
        return self.vocab_size

    @property
    def head_dim(self) -> int:
        """Width d of one head."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def query_width(self) -> int:
        """Width n x d of all query heads together, which need not be the hidden size."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads together, or of all value heads."""
        return self.num_key_value_heads * self.head_dim

    def kv_heads_of_rank(self, tensor_parallel_size: int) -> int:
        """Key heads on each rank; where there are more ranks than heads, several hold the same."""
        return max(1, self.num_key_value_heads // tensor_parallel_size)

    @property
    def has_tied_head(self) -> bool:
        """Whether logits are products with the embedding."""
        return self.tie_word_embeddings and self.head == "lm"

    @property
    def chunk_tokens(self) -> int:
        """Tokens whose logits are computed at a time in training; 0: all at once."""
        if self.loss_chunk_tokens is not None or self.head != "lm":
            return self.loss_chunk_tokens or 0
        whole = 4096 * self.known_vocab_size * 4
        return CHUNK_TOKENS if whole > LARGEST_WHOLE_LOGITS else 0

    @property
    def num_parameters(self) -> int:
        """Weights of the whole model, without vocabulary padding."""
        attention = 2 * self.hidden_size * (self.query_width + self.kv_width)
        attention += (self.query_width + 2 * self.kv_width) * self.qkv_bias
        attention += 2 * self.head_dim * self.qk_norm
        layer = attention + 3 * self.hidden_size * self.ffn_hidden_size + 2 * self.hidden_size
        vocab_size = self.known_vocab_size
        head_rows = (0 if self.has_tied_head else vocab_size) if self.head == "lm" else 1
        return self.num_layers * layer + self.hidden_size * (vocab_size + 1 + head_rows)

    def sizes(self, seq_length: int) -> ModelSizes:
        """The sizes that a layout has to divide, for samples of `seq_length` tokens."""
        return ModelSizes(
            num_layers=self.num_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            ffn_hidden_size=self.ffn_hidden_size,
            seq_length=seq_length,
        )

    def padded_vocab_size(self, tensor_parallel_size: int) -> int:
        """Rows of embedding and head in memory: the true size rounded up to lcm(128, TP)."""
        multiple = math.lcm(128, tensor_parallel_size)
        return -(-self.known_vocab_size // multiple) * multiple


def architecture_differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Settings that determine what the tensors mean, in which two model sections differ.

    Args:
        stored: Of a checkpoint, also of an earlier version; empty: nothing differs.
        wanted: Of this version.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    there: dict[str, Any] = {name: defaults[name] for name in _LATER_ARCHITECTURE} | dict(stored)
    here = dict(wanted)
    for section in (there, here):  # a width that is left out is this one
        if {"hidden_size", "num_attention_heads"} <= section.keys():
            usual = section["hidden_size"] // section["num_attention_heads"]
            section["kv_channels"] = section["kv_channels"] or usual
    names = [name for name in _ARCHITECTURE + _LATER_ARCHITECTURE if stored and name in there]
    if wanted["head"] == "score":  # has a head of its own
        names.remove("tie_word_embeddings")
    return [
        f"{name} is {there[name]} there and {here[name]} here"
        for name in names
        if there[name] != here[name]
    ]
