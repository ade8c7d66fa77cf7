"""The dry run: inputs that do not exist yet, and what the rounds would take."""

from pathlib import Path

from megatron_chimed.config.missing import IMPORT_HINT, missing_data
from megatron_chimed.data.datasets.config import DataConfig
from megatron_chimed.generation import plan_session
from megatron_chimed.observe.console import make_console
from megatron_chimed.rejection.config import RejectionConfig
from megatron_chimed.rejection.inputs import RejectionInputs
from megatron_chimed.rejection.round_config import check_layouts, with_unknown_steps
from megatron_chimed.run import print_plan


def missing_inputs(config: RejectionConfig) -> list[str]:
    """Models, prompts and files that the configuration names and that do not exist."""
    stages = {"policy": "sft", "reward_model": "reward"}
    missing = [
        f"{name} {path}: train it with `stage: {stage}`{IMPORT_HINT}{path}"
        for name, stage in stages.items()
        if not Path(path := getattr(config, name)).exists()
    ]
    prompts, external = config.prompts, config.candidates.external
    for name, paths, what in (
        ("prompts.train", prompts.train, "questions as rows of `prompt`, or any chat format"),
        ("prompts.held_out", prompts.held_out, "the same, none of which is trained on"),
        ("candidates.external", external, "external answers as rows of `id` and `completion`"),
        ("training.config", config.training.config, "a configuration for tools/train.py"),
    ):
        missing += [f"{name} {path}: {what}" for path in paths if not _exists(path)]
    tokenizer = str(Path(config.policy, "checkpoints", "iter_N", "tokenizer"))
    mixed = DataConfig(train=config.training.mix) if config.training.mix else None
    lines = missing_data(mixed, "sft", tokenizer) if mixed else []
    return missing + [line.replace("data.train", "training.mix", 1) for line in lines]


def plan_rounds(config: RejectionConfig, inputs: RejectionInputs, world_size: int) -> int:
    """Runs every check that precedes the first draw, and prints what a round's training takes.

    Returns:
        Exit code 0; every fault raises.
    """
    training = check_layouts(config, inputs, world_size)
    layout = plan_session(config.inference.parallel(), inputs.model, world_size)
    console = make_console()
    console.print(f"drawing and scoring on {layout.describe()}; training of a round:")
    training = with_unknown_steps(training, config.output_dir)
    print_plan(training, training.plan_layout(world_size), console)
    console.print("configuration, models, prompts and layouts are valid; nothing was drawn")
    return 0


def _exists(path: str) -> bool:
    """Whether a file, a folder or a pattern matches something."""
    plain = Path(path)
    if plain.exists():
        return True
    folder = Path(plain.anchor or ".")
    return any(folder.glob(str(plain.relative_to(plain.anchor))))
