"""Decoding with a KV cache and continuous batching, under tensor and pipeline parallelism.

A step prefills new prompts, packed end to end in one row, then decodes one token of each running
row. Rows know only their own position, so rows of any length share a step and nothing is padded.

Every rank runs the same agreement flow: one rank of each replica draws and broadcasts the tokens.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.engine import relay_forward, share_decision
from megatron_chimed.errors import NumericError
from megatron_chimed.generation.cache_memory import allocate_cache
from megatron_chimed.generation.continuous_batch import ContinuousBatch, DecodingRow
from megatron_chimed.generation.detokenize import TextStream
from megatron_chimed.generation.requests import FinishReason, Request
from megatron_chimed.generation.sampling import Sampler, prompt_seed
from megatron_chimed.generation.session import Session
from megatron_chimed.kernels import CacheIndices
from megatron_chimed.model import Decode, Prefill, gather_vocabulary
from megatron_chimed.tokenizer import Tokenizer

# Prompt tokens in one forward pass, if it holds more than one prompt: bounds activation memory.
PREFILL_TOKENS = 2048
NOT_FINITE = -1  # broadcast instead of a token, so that all ranks raise the same error

TokenCallback: TypeAlias = Callable[[int, str, FinishReason | None], None]
"""Called after each drawn token: index of the request, new text, finish reason or None."""


class Decoder:
    """Completes requests with the model of a session, step by step.

    Args:
        session: The model.
        requests: Valid ones (`check_requests`); the same on every rank of the replica.
        sampling: How to draw and where to end.
        max_batch: Number of completions that run together.
        with_log_probs: Keep the log-probability of each drawn token.
        on_token: Called after each drawn token.

    Raises:
        ConfigError: The KV cache is larger than the memory that is left.
    """

    def __init__(
        self,
        session: Session,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        *,
        max_batch: int,
        with_log_probs: bool = False,
        on_token: TokenCallback | None = None,
    ) -> None:
        self._session, self._sampling, self._on_token = session, sampling, on_token
        self._with_log_probs = with_log_probs
        self._num_slots = min(max_batch, len(requests))
        self._batch = ContinuousBatch(requests, self._num_slots)
        longest = max(len(request.prompt) for request in requests) + sampling.max_new_tokens
        self._cache = allocate_cache(session, self._num_slots, longest)
        self._streams: dict[int, TextStream] = {}
        ranks = session.ranks
        self._sampler = None
        if ranks.is_last_stage and ranks.tensor_rank == 0:
            self._sampler = Sampler(
                sampling, self._num_slots, vocab_size=session.vocab_size, device=ranks.device
            )

    def __bool__(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._batch)

    @torch.inference_mode()
    def step(self) -> list[DecodingRow]:
        """Draws the next token of each running row; returns the rows that have ended.

        Raises:
            NumericError: Logits are not finite.
        """
        for row in self._batch.admit():
            self._start(row)
        rows = self._batch.unfilled(PREFILL_TOKENS)
        if rows:
            self._prefill(rows)
        for row in self._batch.copies():
            assert row.source is not None, "only rows with a source are copied"
            self._cache.copy(row.source.slot, row.slot, row.prefill_length)
            row.source, row.is_filled = None, True
        rows = self._batch.decoding()
        drawn = self._draw(self._decode(rows), rows)
        for row, token, log_prob in zip(rows, *drawn, strict=True):
            row.log_probs.append(log_prob)
            text = row.take(token, self._sampling, self._streams.get(row.slot))
            if self._on_token is not None:
                self._on_token(row.index, text, row.finish_reason)
        ended = [row for row in rows if row.finish_reason]
        for row in ended:
            self._finish(row)
        return ended

    def stop(self) -> list[DecodingRow]:
        """Ends the running rows with the tokens they have; waiting requests are not started."""
        rows = self._batch.running()
        for row in rows:
            text = row.interrupt(self._streams.get(row.slot))
            if self._on_token is not None:
                self._on_token(row.index, text, row.finish_reason)
            self._finish(row)
        return rows

    def _start(self, row: DecodingRow) -> None:
        request, sampling = row.request, self._sampling
        if self._sampler is not None:
            seed = prompt_seed(sampling.seed, request.prompt_id, request.candidate)
            self._sampler.start(row.slot, request.prompt, seed)
        # Text is decoded token by token only if it is needed before the end.
        tokenizer = self._session.tokenizer
        if tokenizer and (self._on_token or sampling.stop_strings):
            self._streams[row.slot] = self._open_stream(row, tokenizer)

    def _open_stream(self, row: DecodingRow, tokenizer: Tokenizer) -> TextStream:
        before = () if row.request.starts_text else row.request.prompt
        return TextStream(tokenizer, before, self._sampling.stop_strings)

    def _finish(self, row: DecodingRow) -> None:
        tokenizer = self._session.tokenizer
        if not self._streams.pop(row.slot, None) and tokenizer:
            stream = self._open_stream(row, tokenizer)
            stream.push(*row.tokens[len(row.request.prompt) :])
            stream.finish()
            row.text = stream.text

    def _prefill(self, rows: Sequence[DecodingRow]) -> None:
        """Computes the cache of these rows' prompts, except for their last tokens."""
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

    def _decode(self, rows: Sequence[DecodingRow]) -> torch.Tensor | None:
        """Runs the newest token of each row; logits [b, v/t] on the last stage, None elsewhere."""
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
        """Forward pass of tokens [b, s]; the output on the last pipeline stage, None elsewhere."""
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
        self, logits: torch.Tensor | None, rows: Sequence[DecodingRow]
    ) -> tuple[list[int], list[float]]:
        """The next token of each row and its log-probability, the same on all ranks."""
        session = self._session
        # fp64 represents token ids exactly, and a single tensor needs a single broadcast.
        drawn = torch.zeros(2, len(rows), dtype=torch.float64, device=session.ranks.device)
        if logits is not None:
            whole = gather_vocabulary(logits, session.ranks.tensor_group)  # [b, padded v]
            if self._sampler is not None:
                logits = whole[:, : session.vocab_size].float()
                self._sample(self._sampler, logits, rows, drawn)
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

    def _sample(
        self,
        sampler: Sampler,
        logits: torch.Tensor,
        rows: Sequence[DecodingRow],
        drawn: torch.Tensor,
    ) -> None:
        """Writes tokens and log-probabilities for logits [b, v] in fp32 into `drawn` [2, b]."""
        finite = logits.amax(dim=-1).isfinite()  # the largest of NaN and anything is NaN
        if not finite.all():
            drawn[0] = finite.double() + NOT_FINITE
            return
        tokens = sampler.pick(logits, [row.slot for row in rows], [row.num_drawn for row in rows])
        drawn[0] = tokens
        if self._with_log_probs:
            drawn[1] = logits.log_softmax(dim=-1).gather(1, tokens.unsqueeze(-1)).squeeze(-1)
