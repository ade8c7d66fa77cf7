"""Ranks that decide together: an error of one is the same error on all, and nobody waits for ever.

Every phase of a save or load runs inside `Control.everywhere` or `Control.on_first`. Both end in
one exchange, so a rank that failed still takes part, and none may raise between two exchanges. What
travels is JSON bytes over a group of its own (gloo, its timeout above the slowest write).
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from megatron_chimed import errors

T = TypeVar("T")


class Control:
    """The ranks that save or load one checkpoint; without a group, this process alone.

    Args:
        group: A gloo process group over all of them; its timeout bounds every wait.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        self._group = group
        self.rank = dist.get_rank(group) if group else 0
        self.size = dist.get_world_size(group) if group else 1

    def everywhere(self, action: Callable[[], T]) -> list[T]:
        """Runs `action` on every rank.

        Args:
            action: Its result must be JSON.

        Returns:
            The results of all ranks in rank order, on every rank.

        Raises:
            ChimedError: Where any rank failed: the same message on all, naming the ranks. OSError
                becomes OutputError; our own classes stay.
            ParallelError: A peer was lost or did not answer in the group's time.
        """
        result, failure = None, None
        try:
            result = action()
        except Exception as error:
            if self._group is None and not isinstance(error, OSError):
                raise
            failure = error
        answers = self._exchange({"result": result, "error": _describe(failure)})
        failed = {rank: answer["error"] for rank, answer in enumerate(answers) if answer["error"]}
        if failed:
            raise self._joint_error(failed) from failure
        return [answer["result"] for answer in answers]

    def on_first(self, action: Callable[[], T]) -> T:
        """Runs `action` on rank 0 and gives its result, or its error, to every rank."""
        return self.everywhere(lambda: action() if self.rank == 0 else None)[0]

    def _joint_error(self, failed: dict[int, list[str]]) -> errors.ChimedError:
        name = next(iter(failed.values()))[0]
        if self.size == 1:
            return getattr(errors, name)(failed[0][1])
        ranks_of: dict[str, list[str]] = {}
        for rank, (_, text) in failed.items():
            ranks_of.setdefault(text, []).append(str(rank))
        parts = [f"rank {', '.join(ranks)}: {text}" for text, ranks in ranks_of.items()]
        return getattr(errors, name)("; ".join(parts))

    def _exchange(self, value: Any) -> list[Any]:
        if self._group is None:
            return [value]
        payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        try:
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(lengths, torch.tensor([len(payload)]), group=self._group)
            longest = max(int(length) for length in lengths)
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: len(payload)] = payload
            buffers = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(buffers, padded, group=self._group)
        except RuntimeError as error:
            raise errors.ParallelError(
                f"rank {self.rank} lost a peer while all ranks were to agree: {error}. "
                "Committed checkpoints are intact; start the same command again."
            ) from error
        return [
            json.loads(buffer[: int(length)].numpy().tobytes())
            for buffer, length in zip(buffers, lengths, strict=True)
        ]


def _describe(error: Exception | None) -> list[str] | None:
    if error is None:
        return None
    if isinstance(error, errors.ChimedError):
        return [type(error).__name__, str(error)]
    name = "OutputError" if isinstance(error, OSError) else "CheckpointError"
    return [name, f"{type(error).__name__}: {error}"]
