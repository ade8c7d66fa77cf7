"""What a configuration of rejection sampling names and is not there yet: for a dry run."""

from pathlib import Path

from megatron_chimed.config.missing import IMPORT_HINT, missing_data
from megatron_chimed.data.datasets.config import DataConfig
from megatron_chimed.rejection.config import RejectionConfig


def missing_of_rounds(config: RejectionConfig) -> list[str]:
    """Models, prompts and files that rejection sampling names and that do not exist."""
    stages = {"policy": "sft", "reward_model": "reward"}
    found = [
        f"{name} {path}: train it with `stage: {stage}`{IMPORT_HINT}{path}"
        for name, stage in stages.items()
        if not Path(path := getattr(config, name)).exists()
    ]
    prompts, others = config.prompts, config.candidates.external
    for name, paths, what in (
        ("prompts.train", prompts.train, "questions as rows of `prompt`, or any chat format"),
        ("prompts.held_out", prompts.held_out, "the same, of which none is trained on"),
        ("candidates.external", others, "answers by others as rows of `id` and `completion`"),
        ("training.config", config.training.config, "a configuration as tools/train.py takes it"),
    ):
        found += [f"{name} {path}: {what}" for path in paths if not _is_there(path)]
    tokenizer = str(Path(config.policy, "checkpoints", "iter_N", "tokenizer"))
    mixed = DataConfig(train=config.training.mix) if config.training.mix else None
    lines = missing_data(mixed, "sft", tokenizer) if mixed else []
    return found + [line.replace("data.train", "training.mix", 1) for line in lines]


def _is_there(path: str) -> bool:
    """Whether a file, a folder or a pattern names something."""
    plain = Path(path)
    if plain.exists():
        return True
    folder = Path(plain.anchor or ".")
    return any(folder.glob(str(plain.relative_to(plain.anchor))))
