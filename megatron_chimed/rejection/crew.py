"""The processes of a command that runs several jobs one after another, each with its own layout."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from megatron_chimed import engine
from megatron_chimed.config.run_config import settings_called
from megatron_chimed.engine.agreement import Agreement
from megatron_chimed.generation import Session, open_session
from megatron_chimed.rejection.config import InferenceConfig


def inference_setting(key: str) -> str | None:
    """What rejection sampling calls a setting of how models answer and judge."""
    section, _, name = key.partition(".")
    is_shared = section == "parallel" or key == "training.precision"
    known = {field.name for field in dataclasses.fields(InferenceConfig)}
    return f"inference.{name}" if is_shared and name in known else None


class Crew:
    """This process among all; between two jobs it belongs to no process group.

    Args:
        rank: Its global rank.
        size: Number of processes.
        local_rank: Its number on this host.
        inference: How models that answer and judge are spread over them.
    """

    def __init__(
        self, *, rank: int, size: int, local_rank: int, inference: InferenceConfig
    ) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._inference = inference
        self._stores = engine.job_stores(rank=rank, world_size=size)

    def say(self, text: str) -> None:
        """Prints on the first rank."""
        if self.rank == 0:
            print(text, flush=True)

    @contextlib.contextmanager
    def joined(self, layout: engine.ParallelLayout) -> Iterator[engine.Ranks]:
        """One job."""
        try:
            yield engine.join(
                layout, rank=self.rank, local_rank=self.local_rank, store=next(self._stores)
            )
        finally:
            engine.leave()

    @contextlib.contextmanager
    def meeting(self) -> Iterator[Agreement]:
        """For what the first rank does while the others wait; between jobs."""
        with settings_called(inference_setting):
            yield self._agreement

    @functools.cached_property
    def _agreement(self) -> Agreement:
        return engine.connect(
            rank=self.rank,
            world_size=self.size,
            timeout_seconds=self._inference.timeout_seconds,
            store=next(self._stores),
        )

    @contextlib.contextmanager
    def session(self, checkpoint: Path, head: Literal["lm", "score"] = "lm") -> Iterator[Session]:
        """A job with a model that answers or judges; what the last one held is given back."""
        engine.release_memory()
        opened = open_session(
            checkpoint,
            self._inference.parallel(),
            head=head,
            precision=self._inference.precision,
            world=(self.rank, self.size, self.local_rank),
            store=next(self._stores),
        )
        with settings_called(inference_setting), opened as session:
            yield session
