"""Sizes and numerics of a LLaMA-architecture model."""

import dataclasses
import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

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
        "ffn_hidden_size": 1 << 22,
        "max_position_embeddings": 1 << 26,
    }
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A LLaMA-architecture decoder; the defaults are Ziya-13B's."""

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
    ffn_hidden_size: int = 13824
    """Width f of the SwiGLU product."""
    max_position_embeddings: int = 2048
    """Longest sequence that the model supports, in tokens."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling_factor: float = 1.0
    """Linear scaling: positions are divided by it."""
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
    loss_chunk_tokens: int = 0
    """Tokens whose logits are computed at a time in training: saves memory, at the cost of a fourth
    product with the head beside the usual three; 0: all at once."""
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
        if self.hidden_size % self.num_attention_heads or self.head_dim % 2:
            raise ConfigError(
                f"hidden_size ({self.hidden_size}) / num_attention_heads "
                f"({self.num_attention_heads}) must be a whole, even head width: RoPE turns pairs. "
                f"Set --model.hidden_size to a multiple of {2 * self.num_attention_heads}."
            )
        if self.num_key_value_heads < 1 or self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads}): query heads share key heads in "
                "equal groups. Set --model.num_key_value_heads to a divisor."
            )
        if self.loss_chunk_tokens < 0:
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
        if not 1.0 <= self.rope_scaling_factor < math.inf:
            raise ConfigError(
                f"--model.rope_scaling_factor is {self.rope_scaling_factor}: linear scaling "
                "divides positions by it. Set 1.0 (off) or more."
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
        return self.hidden_size // self.num_attention_heads

    @property
    def num_parameters(self) -> int:
        """Weights of the whole model, without vocabulary padding."""
        attention = (
            self.hidden_size
            * self.head_dim
            * (2 * self.num_attention_heads + 2 * self.num_key_value_heads)
        )
        layer = attention + 3 * self.hidden_size * self.ffn_hidden_size + 2 * self.hidden_size
        vocab_size = self.known_vocab_size
        head_rows = vocab_size if self.head == "lm" else 1
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
