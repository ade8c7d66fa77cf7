"""Decoding with a KV cache and continuous batching, under tensor and pipeline parallelism.

A step prefills new prompts, packed end to end in one row, then decodes one token of each running
row. Rows know only their own position, so rows of any length share a step and nothing is padded.

Every rank runs the same agreement flow: one rank of each replica draws and broadcasts the tokens.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.engine import share_decision
from megatron_chimed.errors import NumericError
from megatron_chimed.generation.cache_memory import plan_cache
from megatron_chimed.generation.continuous_batch import ContinuousBatch, DecodingRow
from megatron_chimed.generation.decode_graphs import graphed, rounded_length
from megatron_chimed.generation.detokenize import TextStream
from megatron_chimed.generation.paged_cache import PagedCache, Run
from megatron_chimed.generation.requests import FinishReason, Request
from megatron_chimed.generation.sampling import Sampler, prompt_seed
from megatron_chimed.generation.session import Session
from megatron_chimed.model import gather_vocabulary
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
        plan = plan_cache(
            requests,
            sampling.max_new_tokens,
            max_batch,
            on_cpu=session.ranks.device.type == "cpu",
        )
        self._prefix: tuple[int, ...] = ()
        self._longest = plan.longest
        self._cache = PagedCache(session, plan)
        self._run_step = graphed(self._cache.decode, session.ranks, self._longest)
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
            self._cache.tables.fork(row.source.slot, row.slot, row.prefill_length)
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
        # Of the slot's last row the prompt stays, if this one has the same.
        self._cache.tables.truncate(row.slot, row.prefill_length if row.is_filled else 0)
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
        row.has_left = not self._batch.awaits(row.request.prompt)
        self._cache.tables.truncate(row.slot, 0 if row.has_left else row.prefill_length)
        tokenizer = self._session.tokenizer
        if not self._streams.pop(row.slot, None) and tokenizer:
            stream = self._open_stream(row, tokenizer)
            stream.push(*row.tokens[len(row.request.prompt) :])
            stream.finish()
            row.text = stream.text

    def _prefill(self, rows: Sequence[DecodingRow]) -> None:
        """Computes the cache of these rows' prompts, except for their last tokens."""
        for row in rows:
            if row.request.prefix_length:
                self._begin_with_prefix(row)
        runs = [
            Run(row.slot, start, row.request.prompt[start:-1])
            for row in rows
            for start in [row.request.prefix_length]
        ]
        self._fill([run for run in runs if run.tokens])
        for row in rows:
            row.is_filled = True

    def _begin_with_prefix(self, row: DecodingRow) -> None:
        """Computes the prefix of a row unless it is that of the row before; the two share it.

        It is held in a row of its own, behind those of the slots.
        """
        prefix = row.request.prompt[: row.request.prefix_length]
        if prefix != self._prefix:
            self._cache.tables.release(self._num_slots)
            self._fill([Run(self._num_slots, 0, prefix)])
            self._prefix = prefix
        self._cache.tables.fork(self._num_slots, row.slot, len(prefix))

    def _fill(self, runs: Sequence[Run]) -> None:
        self._make_room([(run.row, run.start, run.start + len(run.tokens)) for run in runs])
        if runs:
            self._cache.prefill(runs)

    def _make_room(self, runs: Sequence[tuple[int, int, int]]) -> None:
        if self._cache.extend(runs):  # what was recorded refers to the memory before
            self._run_step = graphed(self._cache.decode, self._session.ranks, self._longest)

    def _decode(self, rows: Sequence[DecodingRow]) -> torch.Tensor | None:
        """Runs the newest token of each row; logits [b, v/t] on the last stage, None elsewhere."""
        self._make_room([(row.slot, row.position, row.position + 1) for row in rows])
        longest = max(row.position for row in rows) + 1
        inputs = self._cache.inputs(
            [(row.tokens[-1], row.position, row.slot) for row in rows],
            rounded_length(longest, self._longest),
        )
        return self._run_step(inputs, longest)

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
