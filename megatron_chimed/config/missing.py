"""Inputs that a configuration names and that do not exist, and how to make them: for dry runs."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from megatron_chimed.config.run_config import RunConfig
from megatron_chimed.data.datasets.config import BlendSource, DataConfig
from megatron_chimed.data.datasets.prefix import prefix_exists
from megatron_chimed.data.datasets.split import PARTS
from megatron_chimed.errors import ConfigError

IMPORT_HINT = (
    ", or bring a Hugging Face model in with: tools/convert_checkpoint.py import-hf "
    "--input HF_FOLDER --output "
)
_PREPROCESS = {
    "pretrain": "",
    "sft": " --stage sft --template NAME --seq-length {length}",
    "preference": " --stage preference --template NAME --seq-length {length}",
}


def missing_of_run(config: RunConfig) -> list[str]:
    """Tokenizer, data and weights that a training run names and that do not exist."""
    found = []
    if not Path(config.tokenizer).exists():
        found.append(
            f"tokenizer {config.tokenizer}: put the model's Hugging Face folder there, of which "
            "tokenizer.model or tokenizer.json is needed, or make one with tools/train_tokenizer.py"
        )
    found += missing_data(config.data, config.data_stage, config.tokenizer)
    load = config.checkpoint.load
    is_begun = any(Path(config.output_dir, "checkpoints").glob("iter_*"))
    if load is not None and not is_begun and not Path(load).exists():
        found.append(f"checkpoint.load {load}: train the stage before into it{IMPORT_HINT}{load}")
    return found


def refuse_missing(missing: Sequence[str], what: str) -> None:
    """Raises one error for all missing inputs.

    Args:
        missing: One line each.
        what: What was possible without them.

    Raises:
        ConfigError: Inputs are missing.
    """
    if missing:
        inputs = "1 input is" if len(missing) == 1 else f"{len(missing)} inputs are"
        lines = "".join(f"\n  - {line}" for line in missing)
        raise ConfigError(f"{what}, but {inputs} missing, so the run cannot start yet:{lines}")


def missing_data(data: DataConfig, stage: str, tokenizer: str) -> list[str]:
    """Token files that a `data` section names and that do not exist."""
    words = _PREPROCESS[stage].format(length=data.seq_length)
    return [
        f"data.{part} {prefix}: make it from your files with: tools/preprocess_data.py --input "
        f"FILES --tokenizer {tokenizer} --output-prefix {prefix}{words}"
        for part, prefix in dict.fromkeys(_prefixes(data))
        if not prefix_exists(prefix)
    ]


def _prefixes(data: DataConfig) -> Iterator[tuple[str, str]]:
    for part in PARTS:
        value: str | Iterable[BlendSource] | None = getattr(data, part)
        sources = [value] if isinstance(value, str) else [s.prefix for s in value or ()]
        yield from ((part, prefix) for prefix in sources)
