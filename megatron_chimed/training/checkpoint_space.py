"""The disk space that a run's checkpoints need, known before the first step."""

from dataclasses import dataclass
from pathlib import Path

from megatron_chimed.checkpoint.commit import committed, iteration_name
from megatron_chimed.config.checkpoint import CheckpointConfig
from megatron_chimed.config.training import TrainConfig
from megatron_chimed.disk_space import free_bytes, require_space, show_bytes
from megatron_chimed.engine import DTYPES
from megatron_chimed.model import LoraConfig, ModelConfig, count_adapters

MOMENTS = 2


@dataclass(frozen=True, kw_only=True)
class CheckpointSpace:
    """Disk space of the checkpoints of a run."""

    each: int
    """Bytes of one checkpoint's tensors; tokenizer and index are small in comparison."""
    count: int
    """Most checkpoints at a time, including the one being written: older ones go after that."""
    end: int
    """The last step of the run."""

    @property
    def needed(self) -> int:
        """Bytes of all checkpoints at a time."""
        return self.each * self.count

    def describe(self, folder: Path) -> str:
        """One line, with the free space."""
        free = free_bytes(folder)
        verdict = "" if free >= self.needed else ": too little, training would not start"
        return (
            f"a checkpoint takes {show_bytes(self.each)} on disk, and up to {self.count} exist at "
            f"once: {show_bytes(self.needed)}; free for {folder}: {show_bytes(free)}{verdict}"
        )

    def require(self, folder: Path) -> None:
        """Checks that there is space for the checkpoints that the run will add to existing ones.

        Raises:
            OutputError: There is not enough space.
        """
        existing = committed(folder)
        if existing and existing[0].name >= iteration_name(self.end):
            return
        more = max(1, self.count - len(existing))
        beside = f" besides the {len(existing)} existing ones" if existing else ""
        require_space(
            folder,
            self.each * more,
            f"the run's checkpoints ({more} of {show_bytes(self.each)} at once{beside})",
            "give another --output-dir, or keep fewer: --checkpoint.keep (2 at least), "
            "--checkpoint.keep_best false",
        )


def plan_checkpoint_space(
    model: ModelConfig,
    lora: LoraConfig,
    training: TrainConfig,
    checkpoint: CheckpointConfig,
    *,
    validates: bool,
) -> CheckpointSpace:
    """Computes size and number of a run's checkpoints.

    Args:
        model: The architecture.
        lora: The adapters.
        training: Steps and precision.
        checkpoint: When to save and what to keep.
        validates: Whether the run has validation data.
    """
    element = DTYPES[training.precision].itemsize
    adapters = count_adapters(model, lora)
    weights = model.num_parameters + adapters
    trained = weights
    if lora.rank:
        trained = adapters + (model.hidden_size if model.head == "score" else 0)
    kept = 4 * (MOMENTS + (element < 4))  # and the master weights, in fp32
    end = training.end_step
    interval = checkpoint.save_interval
    saves = (end - 1) // interval + 1 if interval else 1
    improves = validates and checkpoint.keep_best and training.eval_interval > 0
    bests = (end - 1) // training.eval_interval if improves else 0
    # Besides the newest and the best there is the one that is being written.
    limit = checkpoint.keep + improves + 1 if checkpoint.keep else saves + improves
    each = weights * element + trained * kept
    return CheckpointSpace(each=each, count=min(saves + bests, limit), end=end)
