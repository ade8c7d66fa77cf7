"""The processes of a command that runs several jobs one after another, each with its own layout."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from megatron_chimed import engine
from megatron_chimed.config.run_config import settings_called
from megatron_chimed.engine.agreement import Control
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
        self._stores = engine.meeting_places(rank=rank, world_size=size)

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
    def meeting(self) -> Iterator[Control]:
        """A job without a model: for what the first rank does while the others wait."""
        layout = engine.plan_layout(
            engine.ParallelConfig(timeout_seconds=self._inference.timeout_seconds),
            world_size=self.size,
            sizes=engine.ModelSizes(
                num_layers=1,
                num_attention_heads=1,
                num_key_value_heads=1,
                ffn_hidden_size=1,
                seq_length=1,
            ),
        )
        with settings_called(inference_setting), self.joined(layout) as ranks:
            yield Control(ranks.control_group)

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
