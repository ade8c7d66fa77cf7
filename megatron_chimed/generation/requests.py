"""Requests for completions, and the completions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.generation.session import Session, vocab_size_of

FinishReason: TypeAlias = Literal[
    "stop", "length", "interrupted", "prompt_too_long", "prompt_empty"
]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request for one completion.

    Its tokens depend on the prompt, `sampling.seed`, `prompt_id` and `candidate` only, not on the
    other requests of the same call.
    """

    prompt: tuple[int, ...]
    """Token ids, including the beginning of sequence if the model was trained with one."""
    prompt_id: int
    """Identifies the prompt, for example by its row in a file."""
    candidate: int = 0
    """Distinguishes completions of the same prompt."""
    prefix_length: int = 0
    """Number of first tokens of the prompt that are computed and held once for all requests in a
    row that begin with the same ones, such as those of a few-shot prompt. It changes speed, memory
    and the last bits of log-probabilities."""
    max_new_tokens: int | None = None
    """Longest completion in tokens; None takes that of the sampling. It does not change tokens."""
    starts_text: bool = False
    """Whether the completion is a text of its own, such as an answer. Otherwise it continues the
    prompt's text, and the space between the two belongs to it."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The completion of one request."""

    prompt_id: int
    candidate: int
    token_ids: tuple[int, ...]
    """Drawn tokens, without the stop token."""
    text: str | None
    """Their text up to a stop string; empty without a tokenizer, None if nothing was drawn."""
    finish_reason: FinishReason
    """`stop` at a stop token or string, `length` after max_new_tokens, `interrupted` by the user;
    `prompt_too_long` and `prompt_empty` if nothing was drawn."""
    log_probs: tuple[float, ...] | None = None
    """Natural logarithm of the model's own probability (temperature 1, no top-k or top-p) of each
    drawn token, then of the stop token if there was one; None unless requested."""
    stop_id: int | None = None
    """The stop token; None if there was none, or if it was stored before this field existed."""


def make_requests(
    prompts: Sequence[Sequence[int]],
    *,
    num_candidates: int = 1,
    prefix_length: int = 0,
    starts_text: bool = False,
) -> list[Request]:
    """Requests for prompts numbered from 0, with the candidates of each in a row.

    Args:
        prompts: Token ids.
        num_candidates: Number of completions of each prompt.
        prefix_length: As in `Request`.
        starts_text: As in `Request`.

    Raises:
        ConfigError: `num_candidates` is below 1.
    """
    if num_candidates < 1:
        raise ConfigError(
            f"num_candidates is {num_candidates}: it counts completions of each prompt. Set 1 or "
            "more."
        )
    return [
        Request(
            prompt=tuple(prompt),
            prompt_id=number,
            candidate=candidate,
            prefix_length=prefix_length,
            starts_text=starts_text,
        )
        for number, prompt in enumerate(prompts)
        for candidate in range(num_candidates)
    ]


def longest_prompt(session: Session, sampling: SamplingConfig) -> int:
    """Largest prompt in tokens whose completion still fits the model's positions."""
    return session.config.max_position_embeddings - sampling.max_new_tokens


def check_requests(session: Session, requests: Sequence[Request], sampling: SamplingConfig) -> None:
    """Checks that all requests can be completed.

    Raises:
        DataError: A prompt is empty, too long, or not of this vocabulary.
        ConfigError: A stop token, a length limit, a prefix or a stop string is invalid.
    """
    if sampling.stop_strings and session.tokenizer is None:
        raise ConfigError("stop strings need a tokenizer, and there is none. Use stop tokens.")
    vocab_size = vocab_size_of(session.config)
    beyond = [i for i in sampling.stop_token_ids if not 0 <= i < vocab_size]
    if beyond:
        raise ConfigError(
            f"stop tokens {beyond} are outside the vocabulary of {vocab_size} ids and would "
            "never be drawn. Remove them or use the model's own tokenizer."
        )
    for request in requests:
        _check_prompt(session, request, sampling)


def _check_prompt(session: Session, request: Request, sampling: SamplingConfig) -> None:
    prompt, vocab_size = request.prompt, vocab_size_of(session.config)
    name = f"prompt {request.prompt_id} (the first is 0)"
    if request.max_new_tokens is not None and not (
        1 <= request.max_new_tokens <= sampling.max_new_tokens
    ):
        raise ConfigError(
            f"{name} asks for at most {request.max_new_tokens} tokens: set 1 to "
            f"{sampling.max_new_tokens} (sampling.max_new_tokens), or None."
        )
    if not prompt:
        raise DataError(
            f"{name} has no tokens to continue. Prepend the beginning of sequence (--add-bos), or "
            "remove the prompt."
        )
    limit, room = session.config.max_position_embeddings, longest_prompt(session, sampling)
    if len(prompt) > room:
        raise DataError(
            f"{name} has {len(prompt)} tokens; with max_new_tokens "
            f"{sampling.max_new_tokens} that is more than the model's {limit} positions. "
            + (f"Shorten it to {room} tokens, or lower " if room > 0 else "Lower ")
            + "max_new_tokens (--max-new-tokens)."
        )
    if not 0 <= request.prefix_length < len(prompt):
        raise ConfigError(
            f"{name} has {len(prompt)} tokens and prefix_length {request.prefix_length}: set 0 to "
            f"{len(prompt) - 1}, since the last token is no part of what prompts share."
        )
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        raise DataError(
            f"{name} holds ids from {min(prompt)} to {max(prompt)}, but the vocabulary "
            f"has {vocab_size}. Was it encoded with another tokenizer?"
        )
