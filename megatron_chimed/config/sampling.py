"""How completions are drawn."""

import math
from dataclasses import dataclass

from megatron_chimed.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How completions are drawn and where they end."""

    max_new_tokens: int = 256
    """Longest completion, in tokens."""
    temperature: float = 0.0
    """Logits are divided by it; 0 takes the most likely token (greedy)."""
    top_k: int = 0
    """Draw from the k most likely tokens only; 0 is off."""
    top_p: float = 1.0
    """Draw from the fewest tokens with this total probability; 1 is off."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and the completion become less likely; 1 is off."""
    seed: int = 0
    """Seed of the draws: the same seed gives the same completions."""
    stop_token_ids: tuple[int, ...] = ()
    """A completion ends before any of these; the end of sequence is one only if it is listed."""
    stop_strings: tuple[str, ...] = ()
    """A completion's text ends before any of these."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(
                f"max_new_tokens is {self.max_new_tokens}: a completion has at least one token. "
                "Set it to 1 or more."
            )
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ConfigError(
                f"temperature is {self.temperature}: logits are divided by it. Set 0 for greedy "
                "decoding, or a number above 0 such as 0.7."
            )
        if self.top_k < 0:
            raise ConfigError(
                f"top_k is {self.top_k}: it counts tokens. Set 1 or more, or 0 (off)."
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(
                f"top_p is {self.top_p}: it is a probability. Set it above 0 and at most 1 (off)."
            )
        if not (self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty)):
            raise ConfigError(
                f"repetition_penalty is {self.repetition_penalty}: logits are divided by it. Set 1 "
                "(off) or a little more, such as 1.1."
            )
        if "" in self.stop_strings:
            raise ConfigError("a stop string is empty, which every text contains. Leave it out.")
