"""Ranks that decide together: an error of one is the same error on all, and nobody waits for ever.

Every phase of a save or load runs inside `Control.everywhere` or `Control.on_first`. Both end in
one exchange, so a rank that failed still takes part, and none may raise between two exchanges. What
travels is JSON bytes over a group of its own (gloo, its timeout above the slowest write), first how
many each rank has: no rank makes room for more than is told.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from megatron_chimed import errors

T = TypeVar("T")

AT_ONCE_BYTES = 16 << 20
"""Up to so much of all ranks goes around at once; beyond, one rank after another speaks."""
PIECE_BYTES = 64 << 20
"""What a rank tells in one piece: the group's timeout bounds each."""
SLICE = 1024
"""Items of each rank that `Control.gather` moves at a time."""


def json_bytes(value: Any) -> bytearray:
    """A value as JSON in UTF-8; what is no text, as in names of files, comes back as it was."""
    return bytearray(json.dumps(value, ensure_ascii=False), "utf-8", "surrogatepass")


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
        if self._group is None:
            return [self._alone(action)]
        failure = None
        try:
            result = action()
            told = bytearray() if result is None else json_bytes(result)
        except Exception as error:
            failure, told = error, json_bytes(_describe(error))
        answers, failed = self._exchange(told, failure is not None)
        if failed:
            raise self._joint_error({rank: answers[rank] for rank in failed}) from failure
        return answers

    def on_first(self, action: Callable[[], T]) -> T:
        """Runs `action` on rank 0 and gives its result, or its error, to every rank."""
        return self.everywhere(lambda: action() if self.rank == 0 else None)[0]

    def flag_of_first(self, flag: bool) -> bool:
        """Rank 0's flag on every rank: one broadcast of a byte, cheap enough for each token.

        Raises:
            ParallelError: A peer was lost.
        """
        if self._group is None:
            return flag
        told = torch.tensor([flag], dtype=torch.uint8)
        try:
            dist.broadcast(told, dist.get_global_rank(self._group, 0), group=self._group)
        except RuntimeError as error:
            raise errors.ParallelError(
                f"rank {self.rank} lost a peer: {error}. Start the same command again."
            ) from error
        return bool(told.item())

    def gather(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items of all ranks, a slice at a time: no rank ever holds all as JSON.

        Args:
            items: This rank's, JSON each; they may be computed as they are taken.

        Yields:
            The same on every rank, which has to take all; those of one rank in their order.

        Raises:
            ChimedError: As of `everywhere`, also for what is raised while items are computed.
        """
        own = iter(items)
        while any(parts := self.everywhere(lambda: [*itertools.islice(own, SLICE)])):
            yield from itertools.chain.from_iterable(parts)

    def _alone(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except OSError as error:
            raise self._joint_error({0: _describe(error)}) from error

    def _joint_error(self, failed: dict[int, list[str]]) -> errors.ChimedError:
        name = next(iter(failed.values()))[0]
        if self.size == 1:
            return getattr(errors, name)(failed[0][1])
        ranks_of: dict[str, list[str]] = {}
        for rank, (_, text) in failed.items():
            ranks_of.setdefault(text, []).append(str(rank))
        parts = [f"rank {', '.join(ranks)}: {text}" for text, ranks in ranks_of.items()]
        return getattr(errors, name)("; ".join(parts))

    def _exchange(self, told: bytearray, has_failed: bool) -> tuple[list[Any], list[int]]:
        """What every rank told, None where that was nothing, and which ones failed."""
        try:
            statuses = [torch.zeros(2, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(statuses, torch.tensor([len(told), has_failed]), group=self._group)
            sizes = [int(size) for size, _ in statuses]
            if max(sizes) * self.size <= AT_ONCE_BYTES:
                answers = self._all_speak(told, sizes)
            else:
                answers = [self._one_speaks(rank, told, size) for rank, size in enumerate(sizes)]
        except RuntimeError as error:
            raise errors.ParallelError(
                f"rank {self.rank} lost a peer while all ranks were to agree: {error}. "
                "Committed checkpoints are intact; start the same command again."
            ) from error
        return answers, [rank for rank, (_, failed) in enumerate(statuses) if failed]

    def _all_speak(self, told: bytearray, sizes: list[int]) -> list[Any]:
        if not any(sizes):
            return [None] * self.size
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        if told:
            padded[: len(told)] = torch.frombuffer(told, dtype=torch.uint8)
        buffers = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(buffers, padded, group=self._group)
        return [
            json.loads(buffer[:size].numpy().tobytes()) if size else None
            for buffer, size in zip(buffers, sizes, strict=True)
        ]

    def _one_speaks(self, speaker: int, told: bytearray, size: int) -> Any:
        if not size:
            return None
        heard = told if self.rank == speaker else bytearray(size)
        source = dist.get_global_rank(self._group, speaker)
        for piece in torch.frombuffer(heard, dtype=torch.uint8).split(PIECE_BYTES):
            dist.broadcast(piece, source, group=self._group)
        return json.loads(heard)


def _describe(error: Exception | None) -> list[str] | None:
    if error is None:
        return None
    if isinstance(error, errors.ChimedError):
        return [type(error).__name__, str(error)]
    name = "OutputError" if isinstance(error, OSError) else "CheckpointError"
    text = errors.describe_os_error(error) if name == "OutputError" else str(error)
    return [name, f"{type(error).__name__}: {text}"]
