"""Continuous batching: which completion has which cache slot; a finished one is replaced at once.

Nothing here computes. Every rank of a replica holds the same batch and makes the same decisions.
"""

from collections import deque
from collections.abc import Sequence

from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.generation.detokenize import TextStream
from megatron_chimed.generation.requests import Completion, FinishReason, Request


class DecodingRow:
    """A completion in progress.

    The last token of a prompt is decoded like those that follow it, and only the tokens before it
    are prefilled. So every candidate of a prompt starts with the same computation, whether it was
    admitted together with the prefill or later.

    Args:
        request: What is completed.
        index: Index of the request among all requests.
        slot: Its cache slot.
        source: The row with the same prompt whose pages it shares; None if it is prefilled.
    """

    def __init__(
        self, request: Request, index: int, slot: int, source: "DecodingRow | None"
    ) -> None:
        self.request, self.index, self.slot, self.source = request, index, slot, source
        self.tokens = list(request.prompt)
        self.log_probs: list[float] = []
        self.finish_reason: FinishReason | None = None
        self.stop_id: int | None = None
        self.text = ""
        self.is_filled = len(request.prompt) == 1
        self.has_left = False
        """Whether the cache has forgotten its prompt."""

    @property
    def prefill_length(self) -> int:
        """Number of prompt tokens that are prefilled."""
        return len(self.request.prompt) - 1

    @property
    def position(self) -> int:
        """Position of the newest token."""
        return len(self.tokens) - 1

    @property
    def num_drawn(self) -> int:
        """Number of tokens drawn so far."""
        return len(self.tokens) - len(self.request.prompt)

    def take(self, token: int, sampling: SamplingConfig, stream: TextStream | None) -> str:
        """Adds a drawn token and sets `finish_reason`; returns the text that is now final."""
        text = ""
        if token in sampling.stop_token_ids:
            self.finish_reason, self.stop_id = "stop", token
        else:
            self.tokens.append(token)
            text = stream.push(token) if stream else ""
            if stream and stream.is_stopped:
                self.finish_reason = "stop"
            elif self.num_drawn == (self.request.max_new_tokens or sampling.max_new_tokens):
                self.finish_reason = "length"
        return text + self._finish(stream) if self.finish_reason else text

    def interrupt(self, stream: TextStream | None) -> str:
        """Ends the completion early; returns the text that was held back."""
        self.finish_reason = "interrupted"
        return self._finish(stream)

    def _finish(self, stream: TextStream | None) -> str:
        if stream is None:
            return ""
        text = stream.finish()
        self.text = stream.text
        return text

    def completion(self, *, with_log_probs: bool) -> Completion:
        """The result of a row that has ended."""
        assert self.finish_reason is not None, f"request {self.index} has not ended"
        return Completion(
            prompt_id=self.request.prompt_id,
            candidate=self.request.candidate,
            token_ids=tuple(self.tokens[len(self.request.prompt) :]),
            text=self.text,
            finish_reason=self.finish_reason,
            log_probs=tuple(self.log_probs) if with_log_probs else None,
            stop_id=self.stop_id,
        )


class ContinuousBatch:
    """The cache slots and the queue of requests that wait for one.

    Consecutive candidates of a prompt share one prefill: a freed slot keeps its prompt if the next
    request has the same, and that request prefers the slot.

    Args:
        requests: In the order in which they are started.
        num_slots: Number of completions that run together.
    """

    def __init__(self, requests: Sequence[Request], num_slots: int) -> None:
        self._waiting = deque(enumerate(requests))
        self._slots: list[DecodingRow | None] = [None] * num_slots

    def __bool__(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._waiting or self.running())

    def admit(self) -> list[DecodingRow]:
        """Assigns free slots to waiting requests; returns the new rows."""
        free = [i for i, row in enumerate(self._slots) if row is None or row.finish_reason]
        admitted = []
        while free and self._waiting:
            index, request = self._waiting.popleft()
            holders = [
                row
                for row in self._slots
                if row and not row.has_left and row.request.prompt == request.prompt
            ]
            own = next((row for row in holders if row.slot in free), None)
            slot = own.slot if own else free[0]
            free.remove(slot)
            # A holder that still waits for its own source has no cache: share that source's.
            source = (holders[0].source or holders[0]) if holders and not own else None
            row = DecodingRow(request, index, slot, source)
            row.is_filled |= own is not None
            self._slots[slot] = row
            admitted.append(row)
        return admitted

    def awaits(self, prompt: tuple[int, ...]) -> bool:
        """Whether the next request is of a prompt, so that its cache is worth keeping."""
        return bool(self._waiting) and self._waiting[0][1].prompt == prompt

    def unfilled(self, budget: int) -> list[DecodingRow]:
        """Rows to prefill next: as many as fit `budget` tokens, at least one."""
        chosen: list[DecodingRow] = []
        for row in self.running():
            if row.is_filled or row.source:
                continue
            budget -= row.prefill_length - row.request.prefix_length
            if chosen and budget < 0:
                break
            chosen.append(row)
        return chosen

    def copies(self) -> list[DecodingRow]:
        """Rows whose source is prefilled, so that its pages can be shared."""
        rows = self.running()
        return [row for row in rows if not row.is_filled and row.source and row.source.is_filled]

    def decoding(self) -> list[DecodingRow]:
        """Rows that draw their next token now, by slot."""
        return [row for row in self.running() if row.is_filled]

    def running(self) -> list[DecodingRow]:
        """Rows that have not ended, by slot."""
        return [row for row in self._slots if row and row.finish_reason is None]
