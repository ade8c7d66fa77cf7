"""Opens the inputs of a training run on all ranks, which must agree on what they were given."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from megatron_chimed.checkpoint.commit import committed
from megatron_chimed.checkpoint.manifest import manifest_sha256, read_manifest
from megatron_chimed.checkpoint.reader import newest_checkpoint
from megatron_chimed.config.run_config import RunConfig
from megatron_chimed.data.datasets.prefix import content_of
from megatron_chimed.engine.agreement import Agreement
from megatron_chimed.errors import CheckpointError
from megatron_chimed.training.run_inputs import Inputs, open_inputs
from megatron_chimed.yaml_files import flatten

# Paths that may differ between hosts: what is there is compared instead.
_PATHS = ("tokenizer", "data.train", "data.valid", "data.test", "checkpoint.load")
_SAMPLES = "logging.sample_prompts"


def open_together(config: RunConfig, agreement: Agreement) -> Inputs:
    """`open_inputs` on every rank of a job: an error on one is an error on all.

    Raises:
        ChimedError: As of `open_inputs`, on any rank.
    """
    return agreement.together(lambda: open_inputs(config, agreement.size))


def start_facts(config: RunConfig, inputs: Inputs) -> dict[str, Any]:
    """What all ranks must have alike, by name: settings, and inputs by their content."""
    settings = flatten(config.plain())
    facts = {name: value for name, value in settings.items() if name not in (*_PATHS, _SAMPLES)}
    facts["tokenizer"] = f"sha256 {inputs.tokenizer.identity}"
    facts["template"] = None if inputs.template is None else inputs.template.identity
    facts |= {name: content_of(prefix.indexed) for name, prefix in inputs.datasets.prefixes}
    facts["order of samples"] = _digest(inputs.datasets.order)
    facts[_SAMPLES] = None if inputs.samples is None else _digest(inputs.samples.ids)
    own = Path(config.output_dir, "checkpoints")
    resumes = bool(committed(own))
    facts["checkpoint to resume"] = _checkpoint(own) if resumes else None
    if config.checkpoint.load is not None and (config.stage == "dpo" or not resumes):
        facts["checkpoint.load"] = _checkpoint(Path(config.checkpoint.load))
    return facts


def _checkpoint(path: Path) -> str | None:
    """The newest checkpoint of a folder and the hash of its manifest, which has all others."""
    with contextlib.suppress(CheckpointError, OSError):  # loading it says why
        newest = newest_checkpoint(path)
        return f"{newest.name}, sha256 {manifest_sha256(read_manifest(newest))}"
    return None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
