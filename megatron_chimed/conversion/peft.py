"""Exports the adapters of a checkpoint as a folder that the PEFT library loads."""

import os
from pathlib import Path
from typing import Any

import torch

from megatron_chimed import files
from megatron_chimed.checkpoint.adapters import stored_lora_config
from megatron_chimed.checkpoint.index import MASTER_PREFIX, MOMENT_PREFIXES
from megatron_chimed.checkpoint.load import stored_model_config
from megatron_chimed.checkpoint.reader import CheckpointReader, open_checkpoint
from megatron_chimed.checkpoint.safetensors_io import (
    EXPORT_METADATA,
    SafetensorsFile,
    TensorSpec,
    write_safetensors,
)
from megatron_chimed.config.lora import LoraConfig
from megatron_chimed.conversion.audit import (
    Conversion,
    compare,
    describe,
    noting_infinite,
    refuse_infinite,
    write_json,
)
from megatron_chimed.conversion.hf_generation import FILE_NAME as GENERATION_NAME
from megatron_chimed.conversion.hf_generation import exported_settings
from megatron_chimed.conversion.hf_tokenizer import TokenizerExport, export_tokenizer
from megatron_chimed.errors import CheckpointError, DataError, existing_output
from megatron_chimed.model.lora import is_adapter
from megatron_chimed.model.reward_head import SCORE_KEY

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""PEFT's prefix for the names of the model that it wraps."""
_TASKS = {"lm": "CAUSAL_LM", "score": "SEQ_CLS"}


def refuse_adapters(folder: Path) -> None:
    """Raises DataError if a folder holds PEFT adapters, without which the model is another one."""
    if (folder / CONFIG_NAME).exists():
        raise DataError(
            f"{folder} holds LoRA adapters of PEFT ({CONFIG_NAME}), and only whole models are "
            "imported. Merge them into the model that they belong to with PEFT: "
            "PeftModel.from_pretrained(model, folder).merge_and_unload().save_pretrained(merged). "
            "Add its tokenizer, and import that folder."
        )


def export_peft(
    checkpoint: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    dtype: torch.dtype | None = None,
    tokenizer: TokenizerExport | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Writes only the adapters, and a reward model's head, which was trained with them.

    They belong to the model that the run started from (`checkpoint.load`): export that one as the
    base model. The folder also gets the tokenizer, its chat template and the generation settings.

    Args:
        checkpoint: One checkpoint with adapters, or a folder of them (`open_checkpoint`).
        folder: Must not exist or be empty, unless `overwrite`; it appears when it is complete.
        dtype: Dtype of the exported weights; None keeps the stored ones.
        tokenizer: What to write of the tokenizer; None: all.
        overwrite: Replace an existing folder once the new one is complete.

    Raises:
        CheckpointError: The checkpoint is damaged or has no adapters; or a chat template would
            encode conversations differently than training did.
        DataError: Conversion to `dtype` overflows, or no tokenizer of transformers gives our ids.
        OutputError: `folder` is not empty or cannot be written.
    """
    reader = open_checkpoint(checkpoint)
    lora, head = stored_lora_config(reader), stored_model_config(reader).head
    if not lora.rank:
        raise CheckpointError(
            f"{reader.directory} has no adapters: all its weights were trained. Export it without "
            "--lora-format peft."
        )
    specs = {
        PREFIX + key: TensorSpec(dtype or reader.tensors[key].dtype, reader.tensors[key].shape)
        for key in _trained_keys(reader)
    }

    def read(name: str) -> torch.Tensor:
        return reader.read(name.removeprefix(PREFIX)).to(specs[name].dtype)

    infinite: list[str] = []
    notes = [f"they belong to the weights of {reader.config.get('checkpoint', {}).get('load')}"]
    try:
        with files.atomic_directory(folder, replace=overwrite) as staged:
            path = staged / WEIGHTS_NAME
            checked = noting_infinite(read, infinite)
            write_safetensors(path, specs, checked, metadata=EXPORT_METADATA)
            refuse_infinite(infinite)
            compare(specs, read, SafetensorsFile(path).view)
            write_json(staged / CONFIG_NAME, _peft_config(lora, head))
            token_ids = export_tokenizer(
                reader, staged, head, notes, tokenizer or TokenizerExport()
            )
            if head == "lm":
                write_json(staged / GENERATION_NAME, exported_settings(reader.config, token_ids))
    except FileExistsError as error:
        raise existing_output("--output", Path(folder)) from error
    return describe(Path(folder), specs, notes)


def _trained_keys(reader: CheckpointReader) -> list[str]:
    state = (*MOMENT_PREFIXES, MASTER_PREFIX)
    return [
        key
        for key in reader.tensors
        if (is_adapter(key) and not key.startswith(state)) or key == SCORE_KEY
    ]


def _peft_config(lora: LoraConfig, head: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": _TASKS[head],
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(lora.targets),
        "modules_to_save": [SCORE_KEY.removesuffix(".weight")] if head == "score" else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
    }
