"""Weights from and to Hugging Face folders, one tensor at a time.

Peak memory is the largest tensor plus a constant, never the model: each tensor is read, written and
dropped. The output is compared with its source bit by bit before it gets its final name. Our keys
are Hugging Face's, so nothing is renamed, split or permuted; vocabulary padding exists only in
memory and is neither imported nor exported.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from megatron_chimed import files
from megatron_chimed.checkpoint import commit
from megatron_chimed.checkpoint.adapters import merge_adapters
from megatron_chimed.checkpoint.contents import CheckpointContents, write_contents
from megatron_chimed.checkpoint.index import (
    MASTER_PREFIX,
    MOMENT_PREFIXES,
    GlobalTensor,
    StoredShard,
    shard_file,
    shard_name,
)
from megatron_chimed.checkpoint.kinds import not_an_hf_folder
from megatron_chimed.checkpoint.load import stored_model_config
from megatron_chimed.checkpoint.reader import CheckpointReader, open_checkpoint
from megatron_chimed.checkpoint.safetensors_io import (
    EXPORT_METADATA,
    TensorSpec,
    write_safetensors,
)
from megatron_chimed.config.model import ModelConfig
from megatron_chimed.conversion import hf_config
from megatron_chimed.conversion.audit import (
    Conversion,
    compare,
    describe,
    noting_infinite,
    refuse_infinite,
    same_bits,
    write_json,
)
from megatron_chimed.conversion.families import Family, family_in, family_of, supported
from megatron_chimed.conversion.hf_generation import (
    FAMILY_KEY,
    SECTION,
    exported_settings,
    imported_section,
)
from megatron_chimed.conversion.hf_generation import FILE_NAME as GENERATION_NAME
from megatron_chimed.conversion.hf_tokenizer import (
    TokenizerExport,
    export_tokenizer,
    has_chat_template,
    imported_tokenizer,
    tokenizer_files,
)
from megatron_chimed.conversion.hf_weights import INDEX_NAME as HF_INDEX_NAME
from megatron_chimed.conversion.hf_weights import SINGLE_NAME, HfWeights
from megatron_chimed.conversion.peft import refuse_adapters
from megatron_chimed.data.templates import (
    STORED_KEY,
    Template,
    store_template,
    stored_template,
    template_for,
)
from megatron_chimed.disk_space import require_space
from megatron_chimed.engine.agreement import Agreement
from megatron_chimed.errors import CheckpointError, DataError, existing_output
from megatron_chimed.model.parallel import EMBEDDING_KEY, HEAD_KEY
from megatron_chimed.tokenizer import Tokenizer

OUR_SECTION = "megatron_chimed"
"""Key of a Hugging Face config.json that holds a reward model's template."""
IMPORT_RUN_ID = "import"
NAMED_PROBLEMS = 40
IMPORT_SHARD_BYTES = 4 << 30
EXPORT_SHARD_BYTES = 5_000_000_000
"""The default of transformers 4; small enough for every file system and parallel downloads."""


Check = Callable[[CheckpointReader, Path], None]
"""Raises unless a checkpoint and a Hugging Face folder are the same model."""


def import_hf(
    hf_dir: str | os.PathLike, output_dir: str | os.PathLike, *, check: Check | None = None
) -> Conversion:
    """Converts a Hugging Face folder to a committed checkpoint `output_dir/iter_0000000`.

    It holds weights and, if the folder has one, the tokenizer; no optimizer state.

    Args:
        hf_dir: A language model of one of the `families`, or a classifier of it with one label,
            in safetensors, one file or sharded, any of fp32, fp16 and bf16.
        output_dir: A folder of checkpoints.
        check: A further check before the checkpoint is committed, such as `hf_verify`'s.

    Raises:
        DataError: The folder contradicts itself, is of no known family (every problem is listed)
            or holds adapters.
        UnsafeInputError: Pickled weights, code to run, or names that point outside the folder.
        OutputError: The checkpoint exists or cannot be written.
    """
    folder = Path(hf_dir)
    source = _inspect(folder)
    model, weights, notes = source.model, source.weights, source.notes
    shapes = hf_config.weight_shapes(model)
    tokenizer = imported_tokenizer(folder, model, notes)
    specs = {key: weights.spec(key) for key in shapes}
    template = _template_of(source, folder, tokenizer)
    config = {
        "model": dataclasses.asdict(model),
        SECTION: source.section,
        STORED_KEY: None if template is None else store_template(template),
    }
    needed = sum(spec.size for spec in specs.values())
    require_space(output_dir, needed, f"the weights of {folder}")
    agreement = Agreement()
    with commit.staged(output_dir, 0, run_id=IMPORT_RUN_ID, agreement=agreement) as staged:
        agreement.on_rank_0(
            lambda: _write_checkpoint(staged, specs, weights.view, config, tokenizer)
        )
        written = CheckpointReader(staged)
        agreement.on_rank_0(lambda: compare(specs, weights.view, written.read))
        if check is not None:
            check(written, folder)
    output = Path(output_dir, commit.iteration_name(0))
    return describe(output, specs, notes)


def export_hf(
    checkpoint: str | os.PathLike,
    hf_dir: str | os.PathLike,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = EXPORT_SHARD_BYTES,
    tokenizer: TokenizerExport | None = None,
    check: Check | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Writes a Hugging Face folder that transformers 4 and 5 load.

    Of the family that it was imported from, or of the first with its options; a reward model as a
    classifier with one label. Adapters are merged into their matrices.

    Args:
        checkpoint: One checkpoint, or a folder of them (`open_checkpoint`).
        hf_dir: Must not exist or be empty, unless `overwrite`; it appears when it is complete.
        dtype: Dtype of the exported weights; None keeps the stored ones.
        max_shard_bytes: Largest weight file, except for a single larger tensor.
        tokenizer: What to write of the tokenizer; None: all.
        check: A further check before the folder gets its final name, such as `hf_verify`'s.
        overwrite: Replace an existing folder once the new one is complete.

    Raises:
        CheckpointError: The checkpoint is damaged, of no family, or lacks weights or has others; or
            a chat template would encode conversations differently than training did.
        DataError: Conversion to `dtype` overflows, or no tokenizer of transformers gives our ids.
        OutputError: `hf_dir` is not empty or cannot be written.
    """
    reader = merge_adapters(open_checkpoint(checkpoint))
    model, family = _exported_model(reader)
    shapes = hf_config.weight_shapes(model)
    _check_weights(reader, shapes)
    specs = {
        key: TensorSpec(dtype or reader.tensors[key].dtype, shape) for key, shape in shapes.items()
    }

    def read(key: str) -> torch.Tensor:
        out = torch.empty(specs[key].shape, dtype=specs[key].dtype)
        reader.read_region(key, (0,) * out.ndim, out)
        return out

    needed = sum(spec.size for spec in specs.values())
    require_space(hf_dir, needed, f"the weights of {reader.directory}")
    notes: list[str] = []
    try:
        with files.atomic_directory(hf_dir, replace=overwrite) as folder:
            token_ids = export_tokenizer(
                reader, folder, model.head, notes, tokenizer or TokenizerExport()
            )
            _write_hf_weights(folder, specs, read, max_shard_bytes)
            written = HfWeights(folder)
            compare(specs, read, written.view)
            _write_hf_configs(folder, reader, specs, token_ids, family)
            if check is not None:
                check(reader, folder)
    except FileExistsError as error:
        raise existing_output("--output", Path(hf_dir)) from error
    return describe(Path(hf_dir), specs, notes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _CheckedFolder:
    """A checked Hugging Face folder."""

    raw: dict[str, Any]
    """Its config.json."""
    model: ModelConfig
    weights: HfWeights
    section: dict[str, Any]
    """Special ids and settings of generation, as the checkpoint keeps them."""
    notes: list[str]


def _inspect(folder: Path) -> _CheckedFolder:
    """Checks all of the input before anything is written."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Give a Hugging Face model folder.")
    if (advice := not_an_hf_folder(folder)) is not None:
        raise DataError(advice)
    hf_config.refuse_remote_code(folder)
    refuse_adapters(folder)
    raw = hf_config.read_json_object(folder / "config.json")
    model, problems = hf_config.model_config_of(raw)
    weights = HfWeights(folder)
    notes: list[str] = []
    section: dict[str, Any] = {}
    if model is not None:
        section, faults = imported_section(folder, raw, model.known_vocab_size)
        problems += faults
        found = family_in(raw)
        if not isinstance(found, str) and found[0] is not family_of(model):
            section[FAMILY_KEY] = found[0].model_type
        model = _with_own_head(model, weights, notes)
        shapes = hf_config.weight_shapes(model)
        if model.has_tied_head and HEAD_KEY in weights.names:
            shapes[HEAD_KEY] = shapes[EMBEDDING_KEY]  # the same weight again
        notes += weights.check(shapes, model)
    problems += weights.problems
    if problems or model is None:
        listed = "".join(f"\n- {problem}" for problem in problems[:NAMED_PROBLEMS])
        if len(problems) > NAMED_PROBLEMS:
            listed += f"\n- and {len(problems) - NAMED_PROBLEMS} more"
        raise DataError(f"{folder} cannot be imported, {len(problems)} problems:{listed}")
    return _CheckedFolder(raw=raw, model=model, weights=weights, section=section, notes=notes)


def _with_own_head(model: ModelConfig, weights: HfWeights, notes: list[str]) -> ModelConfig:
    """The model, not tied if config.json says so but the files have a head that differs."""
    if not (model.has_tied_head and {HEAD_KEY, EMBEDDING_KEY} <= set(weights.names)):
        return model
    if same_bits(weights.view(HEAD_KEY), weights.view(EMBEDDING_KEY)):
        notes.append("lm_head.weight is the embedding, as config.json says, and is kept once")
        return model
    notes.append(
        "config.json says that the embeddings are tied, but lm_head.weight exists and differs "
        "from them: it is used as the head, and an export is not tied"
    )
    return dataclasses.replace(model, tie_word_embeddings=False)


def _exported_model(reader: CheckpointReader) -> tuple[ModelConfig, Family]:
    model, section = stored_model_config(reader), reader.config.get(SECTION) or {}
    family = family_of(model, section.get(FAMILY_KEY))
    if family is None:
        options = [name for name in ("qkv_bias", "qk_norm") if getattr(model, name)]
        raise CheckpointError(
            f"{reader.directory} cannot be exported: no architecture of transformers that is known "
            f"here has {' and '.join(options)}. Known are {supported()}."
        )
    return model, family


def _write_checkpoint(
    folder: Path,
    specs: Mapping[str, TensorSpec],
    read: Callable[[str], torch.Tensor],
    config: Mapping[str, Any],
    tokenizer: Tokenizer | None,
) -> None:
    records, tensors, infinite = {}, {}, []
    read_checked = noting_infinite(read, infinite)
    for index, keys in enumerate(_shards(specs, IMPORT_SHARD_BYTES)):
        file, in_file = shard_file(index), {}
        for key in keys:
            shape, start = specs[key].shape, (0,) * len(specs[key].shape)
            shard = StoredShard(file, shard_name(key, start), start, shape)
            in_file[shard.name] = specs[key]
            tensors[key] = GlobalTensor(specs[key].dtype, shape, (shard,))
        records[file] = write_safetensors(
            folder / file, in_file, lambda name: read_checked(name.partition("@")[0])
        )
    if infinite:
        raise DataError(
            f"{len(infinite)} tensors hold NaN or infinity: {', '.join(infinite)}. Download "
            "the weights again from their source."
        )
    contents = CheckpointContents(
        iteration=0,
        run_id=IMPORT_RUN_ID,
        layout={},
        tensors=tensors,
        state={} if tokenizer is None else {"tokenizer_identity": tokenizer.identity},
        rank_states=(),
        config=config,
        tokenizer={} if tokenizer is None else tokenizer_files(tokenizer),
    )
    write_contents(folder, contents, records)


def _check_weights(reader: CheckpointReader, shapes: Mapping[str, tuple[int, ...]]) -> None:
    state = (*MOMENT_PREFIXES, MASTER_PREFIX)
    held = {key: tensor for key, tensor in reader.tensors.items() if not key.startswith(state)}
    problems = [f"{key} is missing" for key in shapes if key not in held]
    problems += [f"{key} does not belong to this model" for key in held if key not in shapes]
    problems += [
        f"{key} has shape {held[key].shape}, the model section says {shape}"
        for key, shape in shapes.items()
        if key in held and held[key].shape != shape
    ]
    if problems:
        raise CheckpointError(f"{reader.directory} cannot be exported: {'; '.join(problems)}.")


def _write_hf_weights(
    folder: Path,
    specs: Mapping[str, TensorSpec],
    read: Callable[[str], torch.Tensor],
    max_shard_bytes: int,
) -> None:
    infinite: list[str] = []
    read_checked = noting_infinite(read, infinite)
    shards = _shards(specs, max_shard_bytes)
    names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    names = [SINGLE_NAME] if len(shards) == 1 else names
    for name, keys in zip(names, shards, strict=True):
        shard = {key: specs[key] for key in keys}
        write_safetensors(folder / name, shard, read_checked, metadata=EXPORT_METADATA)
    refuse_infinite(infinite)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(spec.size for spec in specs.values())},
            "weight_map": {
                key: name for name, keys in zip(names, shards, strict=True) for key in keys
            },
        }
        write_json(folder / HF_INDEX_NAME, index)


def _template_of(
    source: _CheckedFolder, folder: Path, tokenizer: Tokenizer | None
) -> Template | None:
    """The template that a model exported by us was trained with; for others, a note."""
    ours = source.raw.get(OUR_SECTION)
    value = ours.get(STORED_KEY) if isinstance(ours, Mapping) else None
    template = stored_template(value, str(folder / "config.json"))
    if template is not None:
        return template
    if source.model.head == "score":
        source.notes.append("its training template is unknown: tools/score.py will ask for it")
    if has_chat_template(folder):
        usual = None if tokenizer is None else template_for(tokenizer)
        found = family_in(source.raw)
        if usual is not None and not isinstance(found, str) and usual.name in found[0].templates:
            source.notes.append(f"chat models of its family use template {usual.name!r}")
        else:
            source.notes.append("its chat template is not one of ours: an export will not have it")
    return None


def _write_hf_configs(
    folder: Path,
    reader: CheckpointReader,
    specs: Mapping[str, TensorSpec],
    token_ids: Mapping[str, Any],
    family: Family,
) -> None:
    model = stored_model_config(reader)
    dtype = specs[EMBEDDING_KEY].dtype
    config = hf_config.to_hf_config(model, dtype=dtype, token_ids=token_ids, family=family)
    if reader.config.get(STORED_KEY) is not None:
        config[OUR_SECTION] = {STORED_KEY: reader.config[STORED_KEY]}
    write_json(folder / "config.json", config)
    if model.head == "lm":
        write_json(folder / GENERATION_NAME, exported_settings(reader.config, token_ids))


def _shards(specs: Mapping[str, TensorSpec], max_bytes: int) -> list[list[str]]:
    """Splits names, in their order, into files of at most `max_bytes` (or of one tensor)."""
    shards: list[list[str]] = [[]]
    size = 0
    for key, spec in specs.items():
        if shards[-1] and size + spec.size > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += spec.size
    return shards
