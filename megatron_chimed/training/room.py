"""The disk that a run's checkpoints take: known before the first step."""

from dataclasses import dataclass
from pathlib import Path

from megatron_chimed.checkpoint.commit import committed, iteration_name
from megatron_chimed.config.checkpoint import CheckpointConfig
from megatron_chimed.config.training import TrainConfig
from megatron_chimed.engine import DTYPES
from megatron_chimed.model import LoraConfig, ModelConfig, count_adapters
from megatron_chimed.space import free_bytes, require_space, show_bytes

MOMENTS = 2


@dataclass(frozen=True, kw_only=True)
class Room:
    """What the checkpoints of a run take."""

    each: int
    """Bytes of the tensors of one; tokenizer and index are small beside them."""
    count: int
    """How many there can be while the last is written: the older are removed after that."""
    end: int
    """The step that the run ends with."""

    @property
    def needed(self) -> int:
        """Bytes of all of them."""
        return self.each * self.count

    def describe(self, folder: Path) -> str:
        """In one line, with what is free."""
        free = free_bytes(folder)
        verdict = "" if free >= self.needed else ": too little, training would not start"
        return (
            f"a checkpoint takes {show_bytes(self.each)} on disk, and up to {self.count} exist at "
            f"once: {show_bytes(self.needed)}; free for {folder}: {show_bytes(free)}{verdict}"
        )

    def require(self, folder: Path) -> None:
        """Finds out whether there is room for what the run will add to those that are there.

        Raises:
            OutputError: There is not.
        """
        there = committed(folder)
        if there and there[0].name >= iteration_name(self.end):
            return
        held = len(there)
        more = max(1, self.count - held)
        beside = f" beside the {held} there" if held else ""
        require_space(
            folder,
            self.each * more,
            f"the run's checkpoints ({more} of {show_bytes(self.each)} at once{beside})",
            "give another --output-dir, or keep fewer: --checkpoint.keep (2 at least), "
            "--checkpoint.keep_best false",
        )


def plan_room(
    model: ModelConfig,
    lora: LoraConfig,
    training: TrainConfig,
    checkpoint: CheckpointConfig,
    *,
    validates: bool,
) -> Room:
    """Counts bytes and checkpoints.

    Args:
        model: The architecture.
        lora: Of its adapters.
        training: Steps and precision.
        checkpoint: When it saves and what it keeps.
        validates: Whether the run has validation data.
    """
    element = DTYPES[training.precision].itemsize
    adapters = count_adapters(model, lora)
    weights = model.num_parameters + adapters
    trained = weights
    if lora.rank:
        trained = adapters + (model.hidden_size if model.head == "score" else 0)
    kept = 4 * (MOMENTS + (element < 4))  # and the master weights, in fp32
    end = min(training.train_steps, training.stop_step or training.train_steps)
    interval = checkpoint.save_interval
    saves = (end - 1) // interval + 1 if interval else 1
    improves = validates and checkpoint.keep_best and training.eval_interval > 0
    bests = (end - 1) // training.eval_interval if improves else 0
    # Beside the newest and the best there is the one that is being written.
    limit = checkpoint.keep + improves + 1 if checkpoint.keep else saves + improves
    each = weights * element + trained * kept
    return Room(each=each, count=min(saves + bests, limit), end=end)
