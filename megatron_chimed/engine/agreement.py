"""Agreement between ranks: an error on one rank is the same error on all, and none waits for ever.

Every phase of a save or load runs inside `Agreement.on_all_ranks` or `Agreement.on_rank_0`. Both
end in one exchange, so a rank that failed still takes part, and none may raise between two
exchanges. Payloads are JSON bytes over a gloo group of their own, whose timeout exceeds the slowest
write. Sizes are exchanged first, so a rank allocates no more than is sent.
"""

import hashlib
import itertools
import json
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from megatron_chimed import errors

T = TypeVar("T")

GATHER_BYTES = 16 << 20
"""Payloads of all ranks together up to this size are gathered at once, larger ones rank by rank."""
CHUNK_BYTES = 64 << 20
"""Size of one broadcast of a large payload: the group's timeout bounds each."""
ITEMS_PER_EXCHANGE = 1024
"""Items of each rank that `Agreement.gather_items` moves at a time."""

SHOWN_CHARACTERS = 100
"""Longest value shown in such a message."""
NAMED_FACTS = 8
"""Differences between ranks that a message names."""
SAME_ON_ALL = (
    "Start every rank with the same command, configuration, code and files, for example from a "
    "file system that the hosts share."
)


def json_bytes(value: Any) -> bytearray:
    """JSON in UTF-8; file names that are not valid text survive the round trip."""
    return bytearray(json.dumps(value, ensure_ascii=False), "utf-8", "surrogatepass")


class Agreement:
    """The ranks that decide together, for example to save one checkpoint.

    Args:
        group: A gloo process group of all of them, whose timeout bounds every wait; it need not
            belong to torch's default group. None for this process alone.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        self._group = group
        self.rank = group.rank() if group else 0
        self.size = group.size() if group else 1

    def on_all_ranks(self, action: Callable[[], T]) -> list[T]:
        """Runs `action` on every rank and exchanges the results, which must be JSON.

        Returns:
            The results of all ranks in rank order, on every rank.

        Raises:
            ChimedError: Any rank failed: the same message on all, naming the ranks. OSError becomes
                OutputError; our own classes stay.
            ParallelError: A peer was lost or did not answer within the group's timeout.
        """
        if self._group is None:
            return [self._alone(action)]
        failure = None
        try:
            result = action()
            payload = bytearray() if result is None else json_bytes(result)
        except Exception as error:
            failure, payload = error, json_bytes(_describe(error))
        answers, failed = self._exchange(self._group, payload, failure is not None)
        if failed:
            raise self._joint_error({rank: answers[rank] for rank in failed}) from failure
        return answers

    def on_rank_0(self, action: Callable[[], T]) -> T:
        """Runs `action` on rank 0 and gives its result, or its error, to every rank."""
        results: list[Any] = self.on_all_ranks(lambda: action() if self.rank == 0 else None)
        return results[0]

    def together(self, action: Callable[[], T]) -> T:
        """Runs `action` on every rank and gives each its own result, of any type.

        Raises:
            ChimedError: As `on_all_ranks`; a missing file is a ConfigError. With one rank, whatever
                the action raised.
        """
        if self.size == 1:
            return action()
        results: list[T] = []

        def attempt() -> None:
            try:
                results.append(action())
            except FileNotFoundError as error:
                text = f"{error.filename!r} does not exist. Check the path."
                raise errors.ConfigError(text) from error

        self.on_all_ranks(attempt)
        return results[0]

    def require_same(self, facts: Mapping[str, Any], advice: str = SAME_ON_ALL) -> None:
        """Refuses to go on where ranks differ; equal facts cost one exchange of a digest.

        Args:
            facts: JSON values by names that a user knows.
            advice: Last sentence of the message.

        Raises:
            ConfigError: A fact differs: the same message on every rank, naming ranks, their hosts,
                the facts and both values.
        """
        digest = hashlib.sha256(json_bytes(sorted(facts.items()))).hexdigest()
        if len(set(self.on_all_ranks(lambda: digest))) == 1:
            return
        answers: list[Any] = self.on_all_ranks(lambda: [socket.gethostname(), dict(facts)])
        hosts = [host for host, _ in answers]
        names = dict.fromkeys(name for _, each in answers for name in each)
        values = {name: [_value(answer, name) for answer in answers] for name in names}
        differing = {name: each for name, each in values.items() if len(set(each)) > 1}
        shown = [_describe_difference(n, v, hosts) for n, v in [*differing.items()][:NAMED_FACTS]]
        more = len(differing) - len(shown)
        raise errors.ConfigError(
            f"the ranks do not agree: {'; '.join(shown)}{f'; and {more} more' if more else ''}. "
            f"{advice}"
        )

    def broadcast_flag(self, flag: bool) -> bool:
        """Rank 0's flag on every rank: one broadcast of a byte, cheap enough for each token.

        Raises:
            ParallelError: A peer was lost.
        """
        if self._group is None:
            return flag
        shared = torch.tensor([flag], dtype=torch.uint8)
        try:
            _wait(self._group.broadcast(shared, 0))
        except RuntimeError as error:
            raise errors.ParallelError(
                f"rank {self.rank} lost a peer: {error}. Start the same command again."
            ) from error
        return bool(shared.item())

    def gather_items(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items of all ranks, a few at a time: no rank holds all of them as JSON.

        Args:
            items: This rank's items, JSON each; a generator may compute them on demand.

        Yields:
            The same items on every rank, which must take all of them; one rank's in their order.

        Raises:
            ChimedError: As `on_all_ranks`, also for errors raised while items are computed.
        """
        own = iter(items)

        def take() -> list[T]:
            return [*itertools.islice(own, ITEMS_PER_EXCHANGE)]

        while True:
            taken = self.on_all_ranks(take)
            if not any(taken):
                return
            yield from itertools.chain.from_iterable(taken)

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
        messages = [f"rank {', '.join(ranks)}: {text}" for text, ranks in ranks_of.items()]
        return getattr(errors, name)("; ".join(messages))

    def _exchange(
        self, group: dist.ProcessGroup, payload: bytearray, has_failed: bool
    ) -> tuple[list[Any], list[int]]:
        """The payloads of all ranks, decoded, None for an empty one; and the ranks that failed."""
        try:
            statuses = [torch.zeros(2, dtype=torch.int64) for _ in range(self.size)]
            _wait(group.allgather([statuses], [torch.tensor([len(payload), int(has_failed)])]))
            sizes = [int(size) for size, _ in statuses]
            if max(sizes) * self.size <= GATHER_BYTES:
                answers = self._gather(group, payload, sizes)
            else:
                answers = [
                    self._broadcast(group, rank, payload, size) for rank, size in enumerate(sizes)
                ]
        except RuntimeError as error:
            raise errors.ParallelError(
                f"rank {self.rank} lost a peer while all ranks were to agree: {error}. "
                "Committed checkpoints are intact; start the same command again."
            ) from error
        return answers, [rank for rank, (_, failed) in enumerate(statuses) if failed]

    def _gather(self, group: dist.ProcessGroup, payload: bytearray, sizes: list[int]) -> list[Any]:
        if not any(sizes):
            return [None] * self.size
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        if payload:
            padded[: len(payload)] = torch.frombuffer(payload, dtype=torch.uint8)
        buffers = [torch.empty_like(padded) for _ in range(self.size)]
        _wait(group.allgather([buffers], [padded]))
        return [
            json.loads(buffer[:size].numpy().tobytes()) if size else None
            for buffer, size in zip(buffers, sizes, strict=True)
        ]

    def _broadcast(self, group: dist.ProcessGroup, root: int, payload: bytearray, size: int) -> Any:
        if not size:
            return None
        received = payload if self.rank == root else bytearray(size)
        for chunk in torch.frombuffer(received, dtype=torch.uint8).split(CHUNK_BYTES):
            _wait(group.broadcast(chunk, root))
        return json.loads(received)


def _value(answer: Sequence[Any], name: str) -> str:
    facts = answer[1]
    return json.dumps(facts[name], ensure_ascii=False) if name in facts else "missing"


def _describe_difference(name: str, values: Sequence[str], hosts: Sequence[str]) -> str:
    """Such as `optim.lr is 0.1 on rank 0 (host a) and 0.2 on ranks 1, 2 (host b)`."""
    ranks_with: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks_with.setdefault(value, []).append(rank)
    parts = []
    for value, ranks in ranks_with.items():
        listed = ", ".join(map(str, ranks[:NAMED_FACTS]))
        listed += ", ..." if len(ranks) > NAMED_FACTS else ""
        on = ", ".join(dict.fromkeys(hosts[rank] for rank in ranks[:NAMED_FACTS]))
        shown = value if len(value) <= SHOWN_CHARACTERS else f"{value[:SHOWN_CHARACTERS]}..."
        parts.append(f"{shown} on rank{'s' if len(ranks) > 1 else ''} {listed} ({on})")
    return f"{name} is {' and '.join(parts)}"


def _wait(work: dist.Work | None) -> None:
    if work is not None:
        work.wait()


def _describe(error: Exception) -> list[str]:
    if isinstance(error, errors.ChimedError):
        return [type(error).__name__, str(error)]
    if errors.is_gpu_out_of_memory(error):
        return [errors.GpuMemoryError.__name__, str(error)]
    name = "OutputError" if isinstance(error, OSError) else "CheckpointError"
    text = errors.describe_os_error(error) if isinstance(error, OSError) else str(error)
    return [name, f"{type(error).__name__}: {text}"]
