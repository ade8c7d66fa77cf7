"""Writes a tokenizer as a Hugging Face folder from which `transformers` gives the same ids.

`transformers` 5 always uses its `tokenizers` back end. If it converts tokenizer.model itself, it
drops a leading space and puts no dummy prefix after an added token, so the folder contains our own
tokenizer.json and names the class that uses it unchanged. (`LlamaTokenizer` called by name rebuilds
its own from the vocabulary; `AutoTokenizer` does not.)
"""

import base64
import json
import os
from pathlib import Path
from typing import Any

from megatron_chimed.errors import ConfigError
from megatron_chimed.tokenizer.bpe_export import BpeExport, export_bpe
from megatron_chimed.tokenizer.byte_bpe import ByteBpeTokenizer
from megatron_chimed.tokenizer.model_proto import BPE, UNIGRAM, parse_model
from megatron_chimed.tokenizer.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_chimed.tokenizer.tokenizer import Tokenizer

MODEL_NAME = "tokenizer.model"
FILE_NAMES = {
    MODEL_NAME,
    "tokenizer.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
}
BYTE_BPE_MINIMUM = {"tokenizer.json", "tokenizer_config.json"}
BYTE_BPE_FILES = FILE_NAMES - {MODEL_NAME} | {"generation_config.json"}
SPACE = "\u2581"  # how sentencepiece spells a space


def is_tokenizer_folder(folder: Path) -> bool:
    """Whether a folder holds exactly files that `save_tokenizer` writes."""
    names = {path.name for path in folder.iterdir()}
    return names == FILE_NAMES or BYTE_BPE_MINIMUM <= names <= BYTE_BPE_FILES


def save_tokenizer(
    tokenizer: Tokenizer, folder: str | os.PathLike, *, for_transformers: bool = True
) -> None:
    """Writes a tokenizer's files.

    Byte-level BPE keeps the files it was read from. sentencepiece gets tokenizer.model, a
    tokenizer.json and the three small Hugging Face files.

    Args:
        tokenizer: The tokenizer to write.
        folder: An existing folder; the caller publishes it (`files.atomic_directory`).
        for_transformers: Also write tokenizer.json, without which `transformers` would convert
            tokenizer.model by itself, to other ids. A checkpoint needs none.

    Raises:
        ConfigError: The sentencepiece model is neither BPE nor unigram.
        DataError: No tokenizer.json gives the ids of the model.
    """
    folder = Path(folder)
    if isinstance(tokenizer, ByteBpeTokenizer):
        for name, content in tokenizer.files.items():
            (folder / name).write_bytes(content)
        return
    assert isinstance(tokenizer, SentencePieceTokenizer), "there are two kinds of tokenizers"
    named = tokenizer.named_tokens()
    (folder / MODEL_NAME).write_bytes(tokenizer.model_bytes)
    if for_transformers:
        _write(folder / "tokenizer.json", _tokenizer_json(tokenizer))
    _write(folder / "added_tokens.json", tokenizer.added_tokens)
    _write(folder / "special_tokens_map.json", named)
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **named,
            "add_bos_token": tokenizer.special.add_bos,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            "added_tokens_decoder": {
                str(entry["id"]): {k: v for k, v in entry.items() if k != "id"}
                for entry in _added_entries(tokenizer)
            },
        },
    )


def _added_entries(tokenizer: SentencePieceTokenizer) -> list[dict[str, Any]]:
    """Control pieces and added tokens, by id; all are matched in raw text, before any prefix."""
    control = {
        tokenizer.token(index): index
        for index in range(tokenizer.model_size)
        if tokenizer.is_control(index)
    }
    return [
        {
            "id": index,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": text in control,
        }
        for text, index in sorted(
            {**control, **tokenizer.added_tokens}.items(), key=lambda item: item[1]
        )
    ]


def _tokenizer_json(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    proto = parse_model(tokenizer.model_bytes)
    model, segments = _model(proto)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_entries(tokenizer),
        "normalizer": _normalizer(proto.normalizer_spec),
        "pre_tokenizer": segments,
        "post_processor": _post_processor(tokenizer),
        "decoder": _decoder(proto.normalizer_spec.add_dummy_prefix),
        "model": model,
    }


def _normalizer(spec: Any) -> dict[str, Any]:
    """The normalisation steps of sentencepiece, in its order."""
    steps: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:
        # Spaces only: the Strip step would remove line ends too.
        steps.append({"type": "Replace", "pattern": {"Regex": "\\A +| +\\z"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if spec.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    return {"type": "Sequence", "normalizers": steps}


def _decoder(add_dummy_prefix: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if add_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _post_processor(tokenizer: SentencePieceTokenizer) -> dict[str, Any] | None:
    if not tokenizer.special.add_bos or tokenizer.bos_id is None:
        return None
    bos = tokenizer.token(tokenizer.bos_id)

    def part(name: str, segment: int) -> list[dict[str, Any]]:
        return [
            {"SpecialToken": {"id": bos, "type_id": segment}},
            {"Sequence": {"id": name, "type_id": segment}},
        ]

    return {
        "type": "TemplateProcessing",
        "single": part("A", 0),
        "pair": part("A", 0) + part("B", 1),
        "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
    }


def _model(proto: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The model, and the pre-tokenizer that it needs."""
    spec = proto.trainer_spec
    if spec.model_type == UNIGRAM:
        unigram = {
            "type": "Unigram",
            "unk_id": spec.unk_id,
            "vocab": [[piece.piece, piece.score] for piece in proto.pieces],
            "byte_fallback": spec.byte_fallback,
        }
        return unigram, None
    if spec.model_type != BPE:
        raise ConfigError(
            f"the sentencepiece model is of type {spec.model_type}, neither BPE nor unigram: "
            "transformers cannot read it. Export without a tokenizer or train another."
        )
    export = export_bpe(proto)
    bpe = {
        "type": "BPE",
        "dropout": None,
        "unk_token": spec.unk_piece,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": spec.byte_fallback,
        "ignore_merges": export.segments is not None,
        "vocab": {piece.piece: index for index, piece in enumerate(proto.pieces)},
        "merges": export.merges,
    }
    return bpe, _pre_tokenizer(export)


def _pre_tokenizer(export: BpeExport) -> dict[str, Any] | None:
    if export.segments is None:
        return None
    return {
        "type": "Split",
        "pattern": {"Regex": export.segments},
        "behavior": "Isolated",
        "invert": False,
    }


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
