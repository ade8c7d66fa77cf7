"""Which completion has which slot of the cache: a finished one is replaced at once.

Nothing here computes. Every rank of a replica holds the same batch and decides alike.
"""

from collections import deque
from collections.abc import Sequence

from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.generation.detokenize import TextStream
from megatron_chimed.generation.requests import Completion, FinishReason, Request


class Row:
    """One completion on its way.

    The last token of a prompt is decoded like those that follow it: only what comes before it is
    prefilled. So each candidate of a prompt starts with one and the same computation, whether it
    came with the prompt or later.

    Args:
        request: What is wanted.
        number: Its place among all requests.
        slot: Of the cache.
        source: The row with the same prompt, from which the cache is copied; None: it is prefilled.
    """

    def __init__(self, request: Request, number: int, slot: int, source: "Row | None") -> None:
        self.request, self.number, self.slot, self.source = request, number, slot, source
        self.tokens = list(request.prompt)
        self.log_probs: list[float] = []
        self.finish_reason: FinishReason | None = None
        self.text = ""
        self.is_filled = len(request.prompt) == 1

    @property
    def prefill_length(self) -> int:
        """Tokens of the prompt that are prefilled."""
        return len(self.request.prompt) - 1

    @property
    def position(self) -> int:
        """Of the newest token."""
        return len(self.tokens) - 1

    @property
    def num_drawn(self) -> int:
        """Tokens of the completion."""
        return len(self.tokens) - len(self.request.prompt)

    def take(self, token: int, sampling: SamplingConfig, stream: TextStream | None) -> str:
        """Takes a drawn token, sets `finish_reason`; returns the text that became certain."""
        text = ""
        if token in sampling.stop_token_ids:
            self.finish_reason = "stop"
        else:
            self.tokens.append(token)
            text = stream.push(token) if stream else ""
            if stream and stream.is_stopped:
                self.finish_reason = "stop"
            elif self.num_drawn == (self.request.max_new_tokens or sampling.max_new_tokens):
                self.finish_reason = "length"
        return text + self._finish(stream) if self.finish_reason else text

    def interrupt(self, stream: TextStream | None) -> str:
        """Ends it as it stands; returns the text that was held back."""
        self.finish_reason = "interrupted"
        return self._finish(stream)

    def _finish(self, stream: TextStream | None) -> str:
        if stream is None:
            return ""
        text = stream.finish()
        self.text = stream.text
        return text

    def completion(self, *, with_log_probs: bool) -> Completion:
        """The result; only once it has ended."""
        assert self.finish_reason is not None, f"request {self.number} has not ended"
        return Completion(
            prompt_id=self.request.prompt_id,
            candidate=self.request.candidate,
            token_ids=tuple(self.tokens[len(self.request.prompt) :]),
            text=self.text,
            finish_reason=self.finish_reason,
            log_probs=tuple(self.log_probs) if with_log_probs else None,
        )


class Batch:
    """The slots of a cache and the requests that wait for one.

    Candidates of a prompt that follow one another share one prefill: a slot keeps its prompt until
    it is given away, and the first of them to get a free slot takes one that holds its prompt.

    Args:
        requests: What is wanted, in the order in which it is started.
        num_slots: Completions that run together.
    """

    def __init__(self, requests: Sequence[Request], num_slots: int) -> None:
        self._waiting = deque(enumerate(requests))
        self._slots: list[Row | None] = [None] * num_slots

    def __bool__(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._waiting or self.running())

    def admit(self) -> list[Row]:
        """Gives every free slot to a waiting request; returns the new rows."""
        free = [i for i, row in enumerate(self._slots) if row is None or row.finish_reason]
        admitted = []
        while free and self._waiting:
            number, request = self._waiting.popleft()
            holders = [row for row in self._slots if row and row.request.prompt == request.prompt]
            own = next((row for row in holders if row.slot in free), None)
            slot = own.slot if own else free[0]
            free.remove(slot)
            # A holder that waits for its own source is none: what both wait for is.
            source = (holders[0].source or holders[0]) if holders and not own else None
            row = Row(request, number, slot, source)
            row.is_filled |= own is not None
            self._slots[slot] = row
            admitted.append(row)
        return admitted

    def unfilled(self, budget: int) -> list[Row]:
        """Rows whose prompts are to be prefilled next: as many as fit, one in any case."""
        chosen: list[Row] = []
        for row in self.running():
            if row.is_filled or row.source:
                continue
            budget -= row.prefill_length
            if chosen and budget < 0:
                break
            chosen.append(row)
        return chosen

    def copies(self) -> list[Row]:
        """Rows that can now take their prompt from their source."""
        rows = self.running()
        return [row for row in rows if not row.is_filled and row.source and row.source.is_filled]

    def decoding(self) -> list[Row]:
        """Rows that take their next token now, by slot."""
        return [row for row in self.running() if row.is_filled]

    def running(self) -> list[Row]:
        """Rows that have not ended, by slot."""
        return [row for row in self._slots if row and row.finish_reason is None]
