"""Decoding with a KV cache, under tensor and pipeline parallelism: continuous batching.

A step fills in the prompts that are new, end to end in one row, then takes one token of each row
that runs. Rows know only their own position, so rows of any length, and at any point of their
completion, share a step, and nothing is padded.

Every rank runs the same control flow: one rank of each replica draws, all others are told.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.engine import relay_forward, share_decision
from megatron_chimed.errors import NumericError
from megatron_chimed.generation.batch import Batch, Row
from megatron_chimed.generation.detokenize import TextStream
from megatron_chimed.generation.requests import FinishReason, Request
from megatron_chimed.generation.sampling import Sampler, prompt_seed
from megatron_chimed.generation.session import Session
from megatron_chimed.kernels import CacheIndices
from megatron_chimed.model import Decode, KVCache, ModelConfig, Prefill, gather_vocabulary

# Tokens of prompts that one forward pass takes, if it is more than one prompt: it bounds the memory
# of activations.
PREFILL_TOKENS = 2048
NOT_FINITE = -1  # told instead of a token, so that all ranks stop with the same error

Listener: TypeAlias = Callable[[int, str, FinishReason | None], None]
"""Called with (place of the request, new text, why it ended or None) after each drawn token."""


def cache_bytes(
    config: ModelConfig,
    *,
    num_layers: int,
    max_batch: int,
    max_length: int,
    tensor_parallel_size: int,
    dtype: torch.dtype,
) -> int:
    """Bytes of keys and values on one rank.

    Args:
        config: Sizes of the whole model.
        num_layers: Layers on the rank.
        max_batch: Completions that run together.
        max_length: Longest prompt plus its completion, in tokens.
        tensor_parallel_size: Ranks that share the key/value heads.
        dtype: Of keys and values: that of the weights.
    """
    heads = config.num_key_value_heads // tensor_parallel_size
    values = 2 * num_layers * max_batch * max_length * heads * config.head_dim
    return values * dtype.itemsize


class Decoder:
    """Runs requests on the model of a session, step by step.

    Args:
        session: The model.
        requests: Checked; the same on every rank of the replica.
        sampling: How to draw and where to end.
        max_batch: Completions that run together.
        with_log_probs: Keep the log-probability of each drawn token.
        listener: Told about each token.
    """

    def __init__(
        self,
        session: Session,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        *,
        max_batch: int,
        with_log_probs: bool = False,
        listener: Listener | None = None,
    ) -> None:
        self._session, self._sampling, self._listener = session, sampling, listener
        self._with_log_probs = with_log_probs
        self._num_slots = min(max_batch, len(requests))
        self._batch = Batch(requests, self._num_slots)
        self._cache = self._allocate(requests)
        self._streams: dict[int, TextStream] = {}
        ranks = session.ranks
        self._sampler = None
        if ranks.is_last_stage and ranks.tensor_rank == 0:
            self._sampler = Sampler(
                sampling, self._num_slots, vocab_size=session.vocab_size, device=ranks.device
            )

    def __bool__(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._batch)

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Gives each running row its next token; returns the rows that have ended.

        Raises:
            NumericError: Logits are not finite.
        """
        for row in self._batch.admit():
            self._start(row)
        rows = self._batch.unfilled(PREFILL_TOKENS)
        if rows:
            self._prefill(rows)
        for row in self._batch.copies():
            self._cache.copy(row.source.slot, row.slot, row.prefill_length)
            row.source, row.is_filled = None, True
        rows = self._batch.decoding()
        drawn = self._draw(self._decode(rows), rows)
        for row, token, log_prob in zip(rows, *drawn, strict=True):
            row.log_probs.append(log_prob)
            text = row.take(token, self._sampling, self._streams.get(row.slot))
            if self._listener is not None:
                self._listener(row.number, text, row.finish_reason)
        ended = [row for row in rows if row.finish_reason]
        for row in ended:
            self._finish(row)
        return ended

    def stop(self) -> list[Row]:
        """Ends the rows that run, with what they have; those that wait are not started."""
        rows = self._batch.running()
        for row in rows:
            text = row.interrupt(self._streams.get(row.slot))
            if self._listener is not None:
                self._listener(row.number, text, row.finish_reason)
            self._finish(row)
        return rows

    def _allocate(self, requests: Sequence[Request]) -> KVCache:
        session = self._session
        config, layout = session.config, session.ranks.layout
        longest = max(len(request.prompt) for request in requests) + self._sampling.max_new_tokens
        heads = config.num_key_value_heads // layout.tensor_parallel_size
        return KVCache(
            session.layers,
            (self._num_slots, heads, longest, config.head_dim),
            dtype=session.settings.params_dtype,
            device=session.ranks.device,
        )

    def _start(self, row: Row) -> None:
        request, sampling = row.request, self._sampling
        if self._sampler is not None:
            seed = prompt_seed(sampling.seed, request.prompt_id, request.candidate)
            self._sampler.start(row.slot, request.prompt, seed)
        # Text is made token by token only where somebody looks at it on the way.
        if self._session.tokenizer and (self._listener or sampling.stop_strings):
            self._streams[row.slot] = self._open_stream(row)

    def _open_stream(self, row: Row) -> TextStream:
        before = () if row.request.starts_text else row.request.prompt
        return TextStream(self._session.tokenizer, before, self._sampling.stop_strings)

    def _finish(self, row: Row) -> None:
        if not self._streams.pop(row.slot, None) and self._session.tokenizer:
            stream = self._open_stream(row)
            stream.push(*row.tokens[len(row.request.prompt) :])
            stream.finish()
            row.text = stream.text

    def _prefill(self, rows: Sequence[Row]) -> None:
        """Brings the prompts of these rows into the cache, each up to its last token."""
        runs = [row.request.prompt[:-1] for row in rows]
        lengths = [len(run) for run in runs]
        tokens = [token for run in runs for token in run]
        positions = [i for length in lengths for i in range(length)]
        segment_ids = [i for i, length in enumerate(lengths) for _ in range(length)]
        self._forward(
            torch.tensor([tokens]),
            torch.tensor([positions]),
            cache=Prefill(cache=self._cache, slots=[row.slot for row in rows], lengths=lengths),
            segment_ids=torch.tensor([segment_ids], device=self._session.ranks.device),
        )
        for row in rows:
            row.is_filled = True

    def _decode(self, rows: Sequence[Row]) -> torch.Tensor | None:
        """Runs the newest token of each row; logits [b, v/t] on the last stage, else None."""
        tokens = torch.tensor([[row.tokens[-1]] for row in rows])  # [b, 1]
        positions = torch.tensor([[row.position] for row in rows])
        device = self._session.ranks.device
        indices = CacheIndices(
            slots=torch.tensor([row.slot for row in rows], device=device),
            positions=positions.flatten().to(device),
            longest=max(row.position for row in rows) + 1,
        )
        logits = self._forward(tokens, positions, cache=Decode(cache=self._cache, indices=indices))
        return None if logits is None else logits[0]

    def _forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        *,
        cache: Prefill | Decode,
        segment_ids: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """One pass of tokens [b, s] over all stages; what the last one gives, or None elsewhere."""
        session = self._session
        tokens, positions = (x.to(session.ranks.device) for x in (tokens, positions))
        batch_size, num_tokens = tokens.shape
        return relay_forward(
            session.chunks,
            lambda chunk: chunk(tokens, positions, segment_ids=segment_ids, cache=cache),
            shape=(num_tokens, batch_size, session.config.hidden_size),
            dtype=session.settings.params_dtype,
            ranks=session.ranks,
        )

    def _draw(
        self, logits: torch.Tensor | None, rows: Sequence[Row]
    ) -> tuple[list[int], list[float]]:
        """The next token of each row and its log-probability, the same on all ranks."""
        session = self._session
        # fp64 holds a token's number exactly, and one tensor is one message.
        drawn = torch.zeros(2, len(rows), dtype=torch.float64, device=session.ranks.device)
        if logits is not None:
            whole = gather_vocabulary(logits, session.ranks.tensor_group)  # [b, padded v]
            if self._sampler is not None:
                self._sample(whole[:, : session.vocab_size].float(), rows, drawn)
        share_decision(drawn, session.ranks)
        tokens = [int(token) for token in drawn[0].tolist()]
        if NOT_FINITE in tokens:
            row = rows[tokens.index(NOT_FINITE)]
            raise NumericError(
                f"the logits after token {row.position} of prompt {row.request.prompt_id} are not "
                "finite. The weights hold NaN or infinity, or overflow in this precision: try bf16 "
                "or fp32."
            )
        return tokens, drawn[1].tolist()

    def _sample(self, logits: torch.Tensor, rows: Sequence[Row], drawn: torch.Tensor) -> None:
        """Writes tokens and log-probabilities for logits [b, v] in fp32 into `drawn` [2, b]."""
        finite = logits.amax(dim=-1).isfinite()  # the largest of NaN and anything is NaN
        if not finite.all():
            drawn[0] = finite.double() + NOT_FINITE
            return
        tokens = self._sampler.pick(
            logits, [row.slot for row in rows], [row.num_drawn for row in rows]
        )
        drawn[0] = tokens
        if self._with_log_probs:
            drawn[1] = logits.log_softmax(dim=-1).gather(1, tokens.unsqueeze(-1)).squeeze(-1)
