"""The protocol buffer of a sentencepiece model, which lists its pieces and settings."""

import importlib
from typing import Any

# From sentencepiece's enumerations TrainerSpec.ModelType and ModelProto.SentencePiece.Type.
UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def parse_model(model: bytes) -> Any:
    """The parsed ModelProto. Slow to load, and needed only for export and inspection."""
    generated = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    return generated.ModelProto.FromString(model)
