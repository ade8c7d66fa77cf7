"""How answers are drawn: a section of every task whose answers are texts."""

import math
from dataclasses import dataclass

from megatron_chimed.errors import ConfigError
from megatron_chimed.evaluation.requests import AnswerRequest, TaskPrompt


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """How answers are drawn."""

    max_new_tokens: int = 512
    """Longest answer."""
    temperature: float = 0.0
    """0: always the most likely token."""
    top_p: float = 1.0
    """Tokens are drawn from the most likely ones of this probability."""
    seed: int = 0
    """Of the draws."""
    stop_strings: tuple[str, ...] = ()
    """Texts before which an answer ends, beside those of the prompt's layout."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.max_new_tokens < 1:
            raise ConfigError(f"answers.max_new_tokens is {self.max_new_tokens}: set 1 or more.")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"answers.temperature is {self.temperature:g}: set 0 or more.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"answers.top_p is {self.top_p:g}: set more than 0, at most 1.")
        if self.seed < 0:
            raise ConfigError(f"answers.seed is {self.seed}: set 0 or more.")
        if "" in self.stop_strings:
            raise ConfigError("answers.stop_strings holds an empty text, where all answers end.")

    def request(self, prompt: TaskPrompt, stops: tuple[str, ...] = ()) -> AnswerRequest:
        """Asks a prompt.

        Args:
            prompt: What is asked.
            stops: Stop strings of its layout.
        """
        return AnswerRequest(
            prompt=prompt,
            max_new_tokens=self.max_new_tokens,
            stop_strings=(*stops, *self.stop_strings),
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
        )
