"""Turns examples into the documents of a stage: plain text, conversations with a mask, rankings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from megatron_chimed.data.formats.example import (
    Conversation,
    Example,
    Ranking,
    Text,
    UnpairedAnswer,
    as_group,
    example_text,
    has_tools,
    is_plain,
)
from megatron_chimed.data.formats.row import COMPARED
from megatron_chimed.data.preprocessing.documents import (
    NOTES,
    Documents,
    RankingGroups,
    concatenate,
)
from megatron_chimed.data.templates import (
    Dropped,
    Encoded,
    EncodedRanking,
    encode_conversations,
    encode_rankings,
    load_template,
)
from megatron_chimed.data.templates.encoding import Truncation
from megatron_chimed.data.templates.template import Targets
from megatron_chimed.tokenizer import Tokenizer

EMPTY = "empty"
BAD_ANSWER = "bad_answer"
KEEP_LABELS = ("good",)
UNPAIRED = (
    "an answer that is judged good or bad: --keep-labels good learns the good ones, and --stage "
    "preference takes both"
)
Reasons = list[str | None]  # per example: why it gives no document, or None
Kind = TypeVar("Kind", Conversation, Ranking)

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
    """Whether a pretraining document ends with the tokenizer's end of sequence."""

    keep_blank_texts: bool = False
    """Whether a pretraining text of white space alone is a document, as in Megatron-LM."""

    template: str | None = None
    """Name or YAML file of the chat template; required by the other stages."""

    targets: Targets = "answers"
    """Which part of a conversation is supervised."""

    seq_length: int | None = None
    """Maximum tokens of a conversation, or of all answers to a prompt together, each with the
    prompt before it, as training packs them; None: no limit."""

    truncation: Truncation = "drop"
    """What happens to a conversation whose first turn is longer than that."""

    keep_labels: str | None = None
    """`good`: stages other than preference take the judged answers that are good."""


class StageEncoder:
    """Encodes the examples of a block for one stage.

    Args:
        tokenizer: Encodes texts.
        config: The stage and its settings.
        dtype: Element type of the ids.
    """

    def __init__(self, tokenizer: Tokenizer, config: StageConfig, dtype: np.dtype) -> None:
        self._tokenizer, self._config, self._dtype = tokenizer, config, dtype
        self._template = None if config.template is None else load_template(config.template)

    def misfit(self, examples: Sequence[Example]) -> str | None:
        """Why the stage cannot use the examples of a row, and what can; None if it can."""
        for example in examples:
            if reason := self._misfit(example):
                return reason
        return None

    def _misfit(self, example: Example) -> str | None:
        stage = self._config.stage
        if isinstance(example, UnpairedAnswer):
            if stage != "preference" and self._config.keep_labels is None:
                return UNPAIRED
            example = example.conversation
            last = example.turns[-1]
            if stage == "preference" and not last.is_learned:
                return f"the judged answer is masked, but {COMPARED}"
        elif advice := ADVICE.get((stage, type(example))):
            return f"{KINDS[type(example)]}, which {advice}"
        if isinstance(example, Text):
            return None
        conversation = _with_thought(example) if isinstance(example, Ranking) else example
        return None if is_plain(conversation) else self._mismatch(conversation)

    def _mismatch(self, conversation: Conversation) -> str | None:
        """Why a conversation that is more than questions and answers does not fit."""
        template = self._template
        if template is not None:
            return template.misfit(conversation)
        if has_tools(conversation):
            return "the assistant calls tools, for which a text without template has no turns"
        if not all(turn.is_learned for turn in conversation.turns):
            return "some answers are not learned, but pretraining learns all: use --stage sft"
        return None

    def select(self, examples: Sequence[Example]) -> Sequence[Example]:
        """What the stage learns of a row that fits: a bad answer is left to preference."""
        if not any(isinstance(example, UnpairedAnswer) for example in examples):
            return examples
        selected: list[Example] = []
        for example in examples:
            if not isinstance(example, UnpairedAnswer):
                selected.append(example)
            elif self._config.stage == "preference":
                selected.append(as_group(example))
            elif example.is_good:
                selected.append(example.conversation)
        return selected

    def encode(self, examples: Sequence[Example]) -> tuple[Documents, Reasons]:
        """The documents of the examples, and for each example why it gives none."""
        if self._config.stage == "pretrain":
            return self._encode_texts(examples)
        if self._config.stage == "sft":
            return self._encode_conversations(_all_of(Conversation, examples))
        return self._encode_rankings(_all_of(Ranking, examples))

    def _encode_texts(self, examples: Sequence[Example]) -> tuple[Documents, Reasons]:
        """One document per example; a conversation becomes its texts, one per line."""
        texts = (example_text(example) for example in examples)
        # Megatron-LM's preprocess_data.py keeps a text if it has any id, of spaces or not.
        keep_blank = self._config.keep_blank_texts
        ids, lengths = self._tokenizer.encode_packed(
            ["" if text.isspace() and not keep_blank else text for text in texts],
            end_id=self._tokenizer.eod_id if self._config.append_eod else None,
        )
        # A text that normalisation removes entirely, such as a lone zero-width space, has no id.
        reasons: Reasons = [None if length else EMPTY for length in lengths.tolist()]
        lengths = lengths[lengths > 0]
        ids = ids.astype(self._dtype, copy=False)
        return Documents(tokens=ids, lengths=lengths, notes=np.zeros(len(lengths), NOTES)), reasons

    def _encode_conversations(
        self, conversations: Sequence[Conversation]
    ) -> tuple[Documents, Reasons]:
        """One document of one sequence per conversation."""
        assert self._template is not None, "stage sft without a template"
        encoded = encode_conversations(
            self._tokenizer,
            self._template,
            conversations,
            targets=self._config.targets,
            seq_length=self._config.seq_length,
            truncation=self._config.truncation,
        )
        kept = [item for item in encoded if isinstance(item, Encoded)]
        notes = np.zeros(len(kept), NOTES)
        notes["end_tokens"] = [item.end_tokens for item in kept]
        notes["dropped_turns"] = [item.dropped_turns for item in kept]
        notes["is_truncated"] = [item.cut or item.dropped_turns > 0 for item in kept]
        notes["tags_removed"] = [item.tags_removed for item in kept]
        documents = Documents(
            tokens=concatenate([item.ids for item in kept], self._dtype),
            lengths=np.array([len(item.ids) for item in kept], np.int32),
            mask=concatenate([item.mask for item in kept], np.dtype(np.uint8)),
            notes=notes,
        )
        return documents, _reasons(encoded)

    def _encode_rankings(self, rankings: Sequence[Ranking]) -> tuple[Documents, Reasons]:
        """One document per ranking, one sequence per candidate."""
        assert self._template is not None, "stage preference without a template"
        encoded = encode_rankings(
            self._tokenizer,
            self._template,
            rankings,
            seq_length=self._config.seq_length,
            truncation=self._config.truncation,
        )
        pairs = zip(encoded, rankings, strict=True)
        kept = [(item, ranking) for item, ranking in pairs if isinstance(item, EncodedRanking)]
        ids = [ids for item, _ in kept for ids in item.ids]
        notes = np.zeros(len(kept), NOTES)
        notes["end_tokens"] = [item.end_tokens for item, _ in kept]
        notes["is_truncated"] = [item.cut > 0 for item, _ in kept]
        notes["tags_removed"] = [item.tags_removed for item, _ in kept]
        ranks = [rank for _, ranking in kept for rank in ranking.ranks]
        margins = [m for _, r in kept for m in r.margins or [math.nan] * len(r.ranks)]
        documents = Documents(
            tokens=concatenate(ids, self._dtype),
            lengths=np.array([len(item) for item in ids], np.int32),
            mask=concatenate([mask for item, _ in kept for mask in item.masks], np.dtype(np.uint8)),
            notes=notes,
            groups=RankingGroups(
                candidates=np.array([len(item.ids) for item, _ in kept], np.int32),
                prompt_lengths=np.array([item.prompt_length for item, _ in kept], np.int32),
                ranks=np.array(ranks, np.int32),
                margins=np.array(margins, np.float64),
            ),
        )
        return documents, _reasons(encoded)


def _all_of(kind: type[Kind], examples: Sequence[Example]) -> list[Kind]:
    """The examples themselves: `misfit` has refused all others before."""
    found = [example for example in examples if isinstance(example, kind)]
    assert len(found) == len(examples), f"an example is no {kind.__name__}"
    return found


def _reasons(encoded: Sequence[object]) -> Reasons:
    return [item.reason if isinstance(item, Dropped) else None for item in encoded]


def _with_thought(ranking: Ranking) -> Conversation:
    """The prompt, with the reasoning of a candidate if any has some."""
    thought = next(filter(None, ranking.reasonings or ()), "")
    *earlier, last = ranking.prompt.turns
    if not thought:
        return ranking.prompt
    return replace(ranking.prompt, turns=(*earlier, replace(last, reasoning=thought)))
