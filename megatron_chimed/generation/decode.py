"""Batched decoding with a KV cache, under tensor and pipeline parallelism.

A batch of prompts is filled in (right padded, `PREFILL_TOKENS` at a time), then every row takes one
token a step until all have ended. Rows know only their own position, so rows of any length, and at
any point of their completion, share a step. Replicas (data-parallel ranks) share out the prompts.

Every rank runs the same control flow: one rank of each replica draws, all others are told.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from megatron_chimed.checkpoint.control import Control
from megatron_chimed.engine import relay_forward, share_decision
from megatron_chimed.errors import ConfigError, DataError, NumericError
from megatron_chimed.generation.sampling import Sampler, SamplingConfig, prompt_seed
from megatron_chimed.generation.session import Session
from megatron_chimed.generation.text import TextStream
from megatron_chimed.model import KVCache, ModelConfig, gather_vocabulary

# Tokens of all rows together that one forward pass of a prompt takes: it bounds the memory of
# activations and of the mask.
PREFILL_TOKENS = 2048
NOT_FINITE = -1  # told instead of a token, so that all ranks stop with the same error

FinishReason: TypeAlias = Literal["stop", "length"]
Listener: TypeAlias = Callable[[int, str, FinishReason | None], None]
"""Called with (number of the prompt, new text, why it ended or None) after each drawn token."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What was generated for one prompt."""

    token_ids: tuple[int, ...]
    """Drawn tokens, without the stop token."""
    text: str
    """Their text up to a stop string; empty without a tokenizer."""
    finish_reason: FinishReason
    """`stop` at a stop token or string, `length` after max_new_tokens."""


def generate(
    session: Session,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    batch_size: int = 16,
    seeds: Sequence[int] | None = None,
    listener: Listener | None = None,
) -> list[Completion]:
    """Completes prompts; every rank calls it with the same arguments.

    Args:
        session: The model.
        prompts: Token ids, begin of sequence included if the model was trained with one.
        sampling: How to draw and where to end.
        batch_size: Prompts decoded together; changes speed and memory (`cache_bytes`), not results.
        seeds: One for each prompt; None derives them from `sampling.seed` and the prompt's number.
        listener: Told about each token of this replica's prompts.

    Returns:
        A completion for each prompt, in order, on every rank.

    Raises:
        DataError: A prompt is empty, too long, or not of this vocabulary.
        ConfigError: `batch_size`, a stop token, or stop strings that cannot be.
        NumericError: Logits are not finite.
    """
    _check(session, prompts, sampling, batch_size)
    if seeds is None:
        seeds = [prompt_seed(sampling.seed, number) for number in range(len(prompts))]
    rows = [
        _Row(session, sampling, number, tuple(prompt), seed)
        for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
    ]
    ranks = session.ranks
    # Rows of one batch should be of one length; the longest first, so that a lack of memory shows.
    own = sorted(rows, key=lambda row: -len(row.tokens))[
        ranks.data_rank :: ranks.layout.data_parallel_size
    ]
    for start in range(0, len(own), batch_size):
        _complete(session, own[start : start + batch_size], sampling, listener)
    _gather_replicas(session, rows, own)
    return [row.completion() for row in rows]


def cache_bytes(
    config: ModelConfig,
    *,
    num_layers: int,
    batch_size: int,
    max_length: int,
    tensor_parallel_size: int,
    dtype: torch.dtype,
) -> int:
    """Bytes of keys and values on one rank.

    Args:
        config: Sizes of the whole model.
        num_layers: Layers on the rank.
        batch_size: Rows.
        max_length: Longest prompt plus its completion, in tokens.
        tensor_parallel_size: Ranks that share the key/value heads.
        dtype: Of keys and values: that of the weights.
    """
    heads = config.num_key_value_heads // tensor_parallel_size
    values = 2 * num_layers * batch_size * max_length * heads * config.head_dim
    return values * dtype.itemsize


class _Row:
    """One prompt on its way."""

    def __init__(
        self,
        session: Session,
        sampling: SamplingConfig,
        number: int,
        prompt: tuple[int, ...],
        seed: int,
    ) -> None:
        self.number, self.prompt, self.seed = number, prompt, seed
        self.tokens = list(prompt)
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self._sampling = sampling
        self._stream = (
            TextStream(session.tokenizer, prompt, sampling.stop_strings)
            if session.tokenizer is not None
            else None
        )

    @property
    def position(self) -> int:
        """Of the newest token."""
        return len(self.tokens) - 1

    def take(self, token: int) -> str:
        """Takes a drawn token; returns the text that became certain and sets `finish_reason`."""
        text = ""
        if token in self._sampling.stop_token_ids:
            self.finish_reason = "stop"
        else:
            self.tokens.append(token)
            text = self._stream.push(token) if self._stream else ""
            num_drawn = len(self.tokens) - len(self.prompt)
            if self._stream and self._stream.is_stopped:
                self.finish_reason = "stop"
            elif num_drawn == self._sampling.max_new_tokens:
                self.finish_reason = "length"
        if self.finish_reason and self._stream:
            text += self._stream.finish()
            self.text = self._stream.text
        return text

    def completion(self) -> Completion:
        """The result; only once it has ended."""
        assert self.finish_reason is not None, f"prompt {self.number} has not ended"
        return Completion(
            token_ids=tuple(self.tokens[len(self.prompt) :]),
            text=self.text,
            finish_reason=self.finish_reason,
        )


def _check(
    session: Session,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    batch_size: int,
) -> None:
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}: it counts prompts. Set 1 or more.")
    if sampling.stop_strings and session.tokenizer is None:
        raise ConfigError("stop strings are text, and there is no tokenizer. Give stop tokens.")
    beyond = [i for i in sampling.stop_token_ids if not 0 <= i < session.config.vocab_size]
    if beyond:
        raise ConfigError(
            f"stop tokens {beyond} are outside the vocabulary of {session.config.vocab_size} ids "
            "and would never be drawn. Take them out or use the model's own tokenizer."
        )
    limit = session.config.max_position_embeddings
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise DataError(
                f"prompt {number} has no tokens, and nothing follows from nothing. Put the begin "
                "of sequence in front (--add-bos), or leave the prompt out."
            )
        if len(prompt) + sampling.max_new_tokens > limit:
            raise DataError(
                f"prompt {number} has {len(prompt)} tokens; with max_new_tokens "
                f"{sampling.max_new_tokens} that is more than the model's {limit} positions. "
                + (
                    f"Shorten it to {limit - sampling.max_new_tokens} tokens, or lower "
                    if limit > sampling.max_new_tokens
                    else "Lower "
                )
                + "max_new_tokens (--max-new-tokens)."
            )
        if min(prompt) < 0 or max(prompt) >= session.config.vocab_size:
            raise DataError(
                f"prompt {number} holds ids from {min(prompt)} to {max(prompt)}, the vocabulary "
                f"has {session.config.vocab_size}. Was it encoded with another tokenizer?"
            )


@torch.no_grad()
def _complete(
    session: Session, rows: Sequence[_Row], sampling: SamplingConfig, listener: Listener | None
) -> None:
    """Decodes one batch until all of its rows have ended."""
    ranks = session.ranks
    cache = _allocate(session, rows, sampling)
    sampler = None
    if ranks.is_last_stage and ranks.tensor_rank == 0:
        sampler = Sampler(
            sampling,
            [row.prompt for row in rows],
            [row.seed for row in rows],
            vocab_size=session.vocab_size,
            device=ranks.device,
        )
    logits = _prefill(session, rows, cache)
    while True:
        drawn = _draw(session, sampler, logits, rows)
        for row, token in zip(rows, drawn, strict=True):
            if row.finish_reason is not None:
                continue
            text = row.take(token)
            if listener is not None:
                listener(row.number, text, row.finish_reason)
        if all(row.finish_reason for row in rows):
            return
        logits = _step(session, rows, cache)


def _allocate(session: Session, rows: Sequence[_Row], sampling: SamplingConfig) -> KVCache:
    config, tensor = session.config, session.ranks.layout.tensor_parallel_size
    longest = max(len(row.prompt) for row in rows) + sampling.max_new_tokens
    return KVCache(
        session.layers,
        (len(rows), longest, config.num_key_value_heads // tensor, config.head_dim),
        dtype=session.settings.params_dtype,
        device=session.ranks.device,
    )


def _prefill(session: Session, rows: Sequence[_Row], cache: KVCache) -> torch.Tensor | None:
    """Runs all prompts; returns logits [b, v/t] after each row's last token (see `_forward`)."""
    device = session.ranks.device
    prompts = [torch.tensor(row.prompt) for row in rows]
    # Padding is any token: no query of its row ever sees it (see KVCache).
    tokens = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True).to(device)  # [b, s]
    ends = torch.tensor([row.position for row in rows], device=device)  # [b]
    width = max(1, PREFILL_TOKENS // len(rows))
    last: torch.Tensor | None = None
    for start in range(0, tokens.shape[1], width):
        part = tokens[:, start : start + width]
        stop = start + part.shape[1]
        positions = torch.arange(start, stop, device=device).expand(len(rows), -1)
        inside = (ends - start).clamp(0, part.shape[1] - 1)
        logits = _forward(session, cache, part, positions, ends=inside, length=stop)  # [b, v/t]
        if logits is None:
            continue
        if last is None:
            last = torch.empty_like(logits)
        ending = (start <= ends) & (ends < stop)
        last[ending] = logits[ending]
    return last


def _step(session: Session, rows: Sequence[_Row], cache: KVCache) -> torch.Tensor | None:
    """Runs each row's newest token; returns logits [b, v/t] (see `_forward`)."""
    device = session.ranks.device
    tokens = torch.tensor([[row.tokens[-1]] for row in rows], device=device)  # [b, 1]
    positions = torch.tensor([[row.position] for row in rows], device=device)
    length = max(row.position for row in rows) + 1
    ends = torch.zeros(len(rows), dtype=torch.int64, device=device)
    return _forward(session, cache, tokens, positions, ends=ends, length=length)


def _forward(
    session: Session,
    cache: KVCache,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    *,
    ends: torch.Tensor,
    length: int,
) -> torch.Tensor | None:
    """One pass over all stages: tokens [b, s] -> logits [b, v/t] at `ends`, on the last one."""
    slots = torch.arange(length, device=tokens.device)
    mask = (slots <= positions.unsqueeze(-1)).unsqueeze(1)  # [b, 1, s, length]
    batch_size, num_tokens = tokens.shape
    logits = relay_forward(
        session.chunks,
        lambda chunk: chunk(tokens, positions, mask=mask, cache=cache, ends=ends),
        shape=(num_tokens, batch_size, session.config.hidden_size),
        dtype=session.settings.params_dtype,
        ranks=session.ranks,
    )
    return None if logits is None else logits[0]


def _draw(
    session: Session, sampler: Sampler | None, logits: torch.Tensor | None, rows: Sequence[_Row]
) -> list[int]:
    """The next token of each row, the same on all ranks of the replica."""
    drawn = torch.empty(len(rows), dtype=torch.int64, device=session.ranks.device)
    if logits is not None:
        whole = gather_vocabulary(logits, session.ranks.tensor_group)  # [b, padded v]
        if sampler is not None:
            whole = whole[:, : session.vocab_size].float()
            finite = whole.amax(dim=-1).isfinite()  # the largest of NaN and anything is NaN
            drawn.copy_(sampler.pick(whole) if finite.all() else finite.long() + NOT_FINITE)
    share_decision(drawn, session.ranks)
    tokens = drawn.tolist()
    if NOT_FINITE in tokens:
        row = rows[tokens.index(NOT_FINITE)]
        raise NumericError(
            f"the logits after token {row.position} of prompt {row.number} are not finite. The "
            "weights hold NaN or infinity, or overflow in this precision: try bf16 or fp32."
        )
    return tokens


def _gather_replicas(session: Session, rows: Sequence[_Row], own: Sequence[_Row]) -> None:
    """Fills in the rows that other replicas have completed."""
    ranks = session.ranks
    if ranks.layout.data_parallel_size == 1:
        return
    speaks = ranks.tensor_rank == 0 and ranks.pipeline_rank == 0
    told = [[r.number, r.tokens, r.text, r.finish_reason] for r in own] if speaks else []
    for answers in Control(ranks.control_group).everywhere(lambda: told):
        for number, tokens, text, reason in answers:
            row = rows[number]
            row.tokens, row.text, row.finish_reason = tokens, text, reason
