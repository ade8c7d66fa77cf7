"""What the stages make of examples: plain documents, conversations with a mask, rankings."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_chimed.data.formats.example import (
    Conversation,
    Example,
    Ranking,
    Text,
    example_text,
)
from megatron_chimed.data.preprocessing.documents import Documents, Groups, empty_notes, join
from megatron_chimed.data.templates import (
    Dropped,
    Encoded,
    EncodedRanking,
    encode_conversations,
    encode_rankings,
    load_template,
)
from megatron_chimed.tokenizer import Tokenizer

EMPTY = "empty"
Reasons = list[str | None]  # per example: why it is no document, or None
Encoder = Callable[[Sequence[Example]], tuple[Documents, Reasons]]

KINDS = {Text: "a plain text", Conversation: "a conversation", Ranking: "a ranking of answers"}
ADVICE = {
    ("sft", Text): "has no question and answer to learn: use --stage pretrain",
    ("preference", Text): "has no answers to compare: use --stage pretrain",
    ("preference", Conversation): "has no second answer to compare with: use --stage sft",
    ("sft", Ranking): "has several answers: use --stage preference",
    ("pretrain", Ranking): "holds bad answers too: use --stage preference",
}


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """How examples become sequences."""

    stage: str = "pretrain"
    """What the tokens are for: `pretrain`, `sft` or `preference`."""

    append_eod: bool = True
    """Whether a pre-training document ends with the tokenizer's end of sequence."""

    template: str | None = None
    """Name or YAML file of the chat template; the other stages need one."""

    targets: str = "answers"
    """What of a conversation is supervised, one of `templates.template.TARGETS`."""

    seq_length: int | None = None
    """Most tokens of a conversation, or of all answers to a prompt, each with the prompt before it,
    as training packs them; None: no limit."""

    truncation: str = "drop"
    """What becomes of a conversation whose first turn is longer, one of `TRUNCATIONS`."""


def misfit(example: Example, stage: str) -> str | None:
    """Why a stage cannot use an example and which one can; None if it can use it."""
    advice = ADVICE.get((stage, type(example)))
    return advice and f"{KINDS[type(example)]}, which {advice}"


def encoder_of(tokenizer: Tokenizer, config: StageConfig, dtype: np.dtype) -> Encoder:
    """The function from examples to documents of a stage; ids are of `dtype`."""
    if config.stage == "pretrain":
        return functools.partial(_encode_texts, tokenizer, config.append_eod, dtype)
    assert config.template is not None, f"stage {config.stage} without a template"
    encode = functools.partial(
        encode_conversations if config.stage == "sft" else encode_rankings,
        tokenizer,
        load_template(config.template),
        seq_length=config.seq_length,
        truncation=config.truncation,
    )
    if config.stage == "sft":
        encode = functools.partial(encode, targets=config.targets)
        return functools.partial(_encode_conversations, encode, dtype)
    return functools.partial(_encode_rankings, encode, dtype)


def _encode_texts(
    tokenizer: Tokenizer, append_eod: bool, dtype: np.dtype, examples: Sequence[Example]
) -> tuple[Documents, Reasons]:
    """One document per example; conversations are their texts, one per line."""
    texts = (example_text(example) for example in examples)
    ids, lengths = tokenizer.encode_packed(
        ["" if text.isspace() else text for text in texts],
        end_id=tokenizer.eos_id if append_eod else None,
    )
    # A text of what normalisation removes, such as a lone zero-width space, leaves no id.
    reasons: Reasons = [None if length else EMPTY for length in lengths.tolist()]
    lengths = lengths[lengths > 0]
    ids = ids.astype(dtype, copy=False)
    return Documents(tokens=ids, lengths=lengths, notes=empty_notes(len(lengths))), reasons


def _encode_conversations(
    encode: Callable[[Sequence[Conversation]], list[Encoded | Dropped]],
    dtype: np.dtype,
    conversations: Sequence[Conversation],
) -> tuple[Documents, Reasons]:
    """One document and sequence per conversation."""
    encoded = encode(conversations)
    kept = [item for item in encoded if isinstance(item, Encoded)]
    notes = empty_notes(len(kept))
    notes["end_tokens"] = [item.end_tokens for item in kept]
    notes["dropped_turns"] = [item.dropped_turns for item in kept]
    notes["is_truncated"] = [item.cut or item.dropped_turns > 0 for item in kept]
    notes["tags_removed"] = [item.tags_removed for item in kept]
    documents = Documents(
        tokens=join([item.ids for item in kept], dtype),
        lengths=np.array([len(item.ids) for item in kept], np.int32),
        mask=join([item.mask for item in kept], np.dtype(np.uint8)),
        notes=notes,
    )
    return documents, _reasons(encoded)


def _encode_rankings(
    encode: Callable[[Sequence[Ranking]], list[EncodedRanking | Dropped]],
    dtype: np.dtype,
    rankings: Sequence[Ranking],
) -> tuple[Documents, Reasons]:
    """One document per ranking, one sequence per candidate."""
    encoded = encode(rankings)
    pairs = zip(encoded, rankings, strict=True)
    kept = [(item, ranking) for item, ranking in pairs if isinstance(item, EncodedRanking)]
    ids = [ids for item, _ in kept for ids in item.ids]
    notes = empty_notes(len(kept))
    notes["end_tokens"] = [item.end_tokens for item, _ in kept]
    notes["is_truncated"] = [item.cut > 0 for item, _ in kept]
    notes["tags_removed"] = [item.tags_removed for item, _ in kept]
    ranks = [rank for _, ranking in kept for rank in ranking.ranks]
    margins = [m for _, r in kept for m in r.margins or [math.nan] * len(r.ranks)]
    documents = Documents(
        tokens=join(ids, dtype),
        lengths=np.array([len(item) for item in ids], np.int32),
        mask=join([mask for item, _ in kept for mask in item.masks], np.dtype(np.uint8)),
        notes=notes,
        groups=Groups(
            candidates=np.array([len(item.ids) for item, _ in kept], np.int32),
            prompt_lengths=np.array([item.prompt_length for item, _ in kept], np.int32),
            ranks=np.array(ranks, np.int32),
            margins=np.array(margins, np.float64),
        ),
    )
    return documents, _reasons(encoded)


def _reasons(encoded: Sequence[object]) -> Reasons:
    return [item.reason if isinstance(item, Dropped) else None for item in encoded]
