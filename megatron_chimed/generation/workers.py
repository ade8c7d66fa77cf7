"""The ranks of a command that runs several distributed jobs in turn, each with its own layout."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeVar

from megatron_chimed import engine
from megatron_chimed.config.inference import InferenceConfig
from megatron_chimed.config.run_config import settings_called
from megatron_chimed.engine.agreement import Agreement
from megatron_chimed.errors import reworded
from megatron_chimed.generation.session import Session, open_session

T = TypeVar("T")

# Flags of tools/generate.py and tools/score.py that messages of a session name.
_SETTINGS = MappingProxyType(
    {
        "--max-batch": "--inference.max_batch",
        "--batch-tokens": "--inference.batch_tokens",
        "--precision": "--inference.precision",
    }
)


def inference_setting(key: str) -> str | None:
    """The name of a training setting under `inference`; None if it is not there."""
    section, _, name = key.partition(".")
    is_shared = section == "parallel" or key == "training.precision"
    known = {field.name for field in dataclasses.fields(InferenceConfig)}
    return f"inference.{name}" if is_shared and name in known else None


class Workers:
    """This process among all ranks; between two jobs it belongs to no process group.

    Args:
        rank: Its global rank.
        size: Number of ranks.
        local_rank: Its index on this host.
        inference: Layout of the models.
        settings: Further flags of those tools, with the command's names for them.
    """

    def __init__(
        self,
        *,
        rank: int,
        size: int,
        local_rank: int,
        inference: InferenceConfig,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._inference = inference
        self._settings = {**_SETTINGS, **settings}
        self._stores = engine.job_stores(rank=rank, world_size=size)

    def print(self, text: str) -> None:
        """Prints on rank 0."""
        if self.rank == 0:
            print(text, flush=True)

    def on_rank_0(self, action: Callable[[], T]) -> T:
        """Runs `action` on rank 0 and gives its result, or its error, to every rank."""
        with settings_called(inference_setting):
            return self.agreement.on_rank_0(action)

    def on_all_ranks(self, action: Callable[[], T]) -> list[T]:
        """Runs `action` on every rank and gives the results, in rank order, to every rank."""
        with settings_called(inference_setting):
            return self.agreement.on_all_ranks(action)

    @contextlib.contextmanager
    def join(self, layout: engine.ParallelLayout) -> Iterator[engine.Ranks]:
        """One distributed job."""
        try:
            yield engine.join(
                layout, rank=self.rank, local_rank=self.local_rank, store=next(self._stores)
            )
        finally:
            engine.leave()

    @contextlib.contextmanager
    def session(self, checkpoint: Path, head: Literal["lm", "score"] = "lm") -> Iterator[Session]:
        """One distributed job with a loaded model; memory of the last job is released first."""
        engine.release_memory()
        opened = open_session(
            checkpoint,
            self._inference.parallel(),
            head=head,
            precision=self._inference.precision,
            device=None,
            world=(self.rank, self.size, self.local_rank),
            store=next(self._stores),
        )
        with settings_called(inference_setting), reworded(self._settings), opened as session:
            yield session

    @functools.cached_property
    def agreement(self) -> Agreement:
        """All ranks, over all jobs; its errors name settings as training does."""
        with settings_called(inference_setting):
            return engine.connect(
                rank=self.rank,
                world_size=self.size,
                timeout_seconds=self._inference.timeout_seconds,
                store=next(self._stores),
            )
