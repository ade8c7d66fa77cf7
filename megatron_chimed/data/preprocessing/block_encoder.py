"""What one worker does: parses, cleans and encodes the rows of a block."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megatron_chimed.data.cleaning.cleaner import EMPTY as EMPTY_RULE
from megatron_chimed.data.cleaning.cleaner import Cleaner
from megatron_chimed.data.cleaning.config import CleaningConfig
from megatron_chimed.data.cleaning.report import CleaningReport
from megatron_chimed.data.datasets.indexed import dtype_for_vocab
from megatron_chimed.data.datasets.sidecar import SourceSummary
from megatron_chimed.data.formats.example import Example, example_text
from megatron_chimed.data.formats.format import ReadOptions
from megatron_chimed.data.formats.keys import UnreadKeys
from megatron_chimed.data.formats.registry import FORMATS
from megatron_chimed.data.formats.row import RowError
from megatron_chimed.data.preprocessing.documents import Documents
from megatron_chimed.data.preprocessing.stage_encoder import (
    BAD_ANSWER,
    EMPTY,
    StageConfig,
    StageEncoder,
)
from megatron_chimed.data.reading import BadRow, InputFile, RowBlock, examples_of
from megatron_chimed.tokenizer import Tokenizer, load_tokenizer

SPOT_CHECK_BLOCKS = 16  # every 16th block has some of its texts compared with sentencepiece
SPOT_CHECK_TEXTS = 8
SPOT_CHECK_CHARACTERS = 1 << 14
REMOVED = "removed."  # prefix of the cleaning rules that drop an example
TEMPLATE_TAGS = "template_tags"  # removed from the texts of conversations


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How rows become ids; the same in every worker."""

    tokenizer: str
    """Path for `load_tokenizer`."""

    inputs: tuple[InputFile, ...]
    """The input files."""

    formats: tuple[str, ...]
    """Format of each input file."""

    reading: ReadOptions
    """How rows are read."""

    stage: StageConfig
    """How examples become sequences."""

    cleaning: CleaningConfig
    """What is changed and removed before encoding."""


@dataclass(kw_only=True)
class RowCounts:
    """What became of the rows of a block or file; fields as in `sidecar.SourceSummary`."""

    rows: int = 0
    quarantined: int = 0
    examples: int = 0
    documents: int = 0
    empty: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    dropped_turns: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    end_tokens: int = 0
    unread: UnreadKeys = field(default_factory=UnreadKeys)

    def add(self, other: "RowCounts") -> None:
        """Adds the counts of another block."""
        for item in dataclasses.fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    def add_removed(self, reason: str) -> None:
        """Counts an example that gives no document."""
        if reason == EMPTY:
            self.empty += 1
        else:
            self.removed[reason] += 1

    def add_documents(self, documents: Documents) -> None:
        """Counts documents that are written."""
        self.documents += len(documents)
        self.tokens += len(documents.tokens)
        if documents.mask is not None:
            self.supervised_tokens += int(documents.mask.sum(dtype=np.int64))
        notes = documents.notes
        assert notes is not None, "documents of an encoder have notes"
        self.truncated += int(notes["is_truncated"].sum())
        self.dropped_turns += int(notes["dropped_turns"].sum())
        self.end_tokens += int(notes["end_tokens"].sum())
        if tags := int(notes["tags_removed"].sum()):
            self.changed[TEMPLATE_TAGS] += tags

    def check(self) -> None:
        """Asserts that the counts add up."""
        rest = self.examples - self.documents - self.empty - self.removed.total()
        assert rest == 0, f"{rest} examples are unaccounted for: {self}"
        assert self.quarantined <= self.rows, f"more malformed rows than rows: {self}"
        assert self.examples >= self.rows - self.quarantined, f"rows without an example: {self}"

    def summarize(self, file: str, size: int, first_document: int) -> SourceSummary:
        """What the sidecar records about the file."""
        self.check()
        counts = self.to_json()
        documents = first_document, first_document + counts.pop("documents")
        unread = tuple(counts.pop("unread"))
        return SourceSummary(
            file=file, bytes=size, documents=documents, unread_keys=unread, **counts
        )

    def to_json(self) -> dict[str, Any]:
        """The JSON object that `from_json` reads back."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        rules = {name: dict(sorted(values[name].items())) for name in ("removed", "changed")}
        return {**values, **rules, "unread": self.unread.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "RowCounts":
        """Reads what `to_json` returned."""
        rules = {name: Counter(value[name]) for name in ("removed", "changed")}
        unread = UnreadKeys.from_json(value.get("unread", ()))  # earlier journals have none
        return cls(**{**value, **rules, "unread": unread})


@dataclass(frozen=True, kw_only=True)
class EncodedBlock:
    """The documents of one block."""

    file: int
    """Index of the file in the list of inputs."""

    number: int
    """Index of the block in its file."""

    position: int
    """Bytes of the file on disk read so far, for progress."""

    counts: RowCounts
    """Counts of everything except the documents, some of which may still be duplicates."""

    bad: tuple[BadRow, ...]
    """Malformed rows, in order."""

    documents: Documents
    """The documents."""

    signatures: tuple[bytes | None, ...]
    """One per document, for deduplication."""

    report: CleaningReport
    """What cleaning did."""


class BlockEncoder:
    """Encodes blocks; holds the tokenizer.

    Args:
        recipe: What to do.
        tokenizer: The recipe's tokenizer where it is loaded already.
    """

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer | None = None) -> None:
        self.recipe = recipe
        self.tokenizer = tokenizer or load_tokenizer(recipe.tokenizer)
        self._cleaner = Cleaner(recipe.cleaning)
        dtype = dtype_for_vocab(self.tokenizer.vocab_size)
        self._stage_encoder = StageEncoder(self.tokenizer, recipe.stage, dtype)

    def encode(self, block: RowBlock) -> EncodedBlock:
        """The block's documents; malformed rows are listed, never raised.

        Raises:
            DataError: The fast tokenizer and sentencepiece disagree.
        """
        counts = RowCounts()
        examples, bad = self._read(block, counts)
        if block.number % SPOT_CHECK_BLOCKS == 0 and examples:
            step = -(-len(examples) // SPOT_CHECK_TEXTS)
            texts = [example_text(example) for example in examples[::step]]
            self.tokenizer.spot_check([text[:SPOT_CHECK_CHARACTERS] for text in texts])
        documents, reasons = self._stage_encoder.encode(examples)
        for reason in filter(None, reasons):
            counts.add_removed(reason)
        kept = [item for item, reason in zip(examples, reasons, strict=True) if reason is None]
        assert len(kept) == len(documents), "every example is a document or has a reason"
        return EncodedBlock(
            file=block.file,
            number=block.number,
            position=block.position,
            counts=counts,
            bad=bad,
            documents=documents,
            signatures=tuple(map(self._cleaner.signature, kept)),
            report=self._cleaner.drain(),
        )

    def count(self, block: RowBlock) -> tuple[RowCounts, tuple[BadRow, ...]]:
        """Counts the rows of a block and lists the malformed ones, without encoding any."""
        counts = RowCounts()
        _, bad = self._read(block, counts)
        return counts, bad

    def _read(self, block: RowBlock, counts: RowCounts) -> tuple[list[Example], tuple[BadRow, ...]]:
        """The cleaned examples, and the malformed rows by line."""
        examples: list[Example] = []
        bad = list(block.oversized)
        counts.rows += len(bad)
        found = examples_of(
            block,
            self.recipe.inputs[block.file],
            FORMATS[self.recipe.formats[block.file]],
            options=self.recipe.reading,
            unread=counts.unread,
        )
        for line, offset, row in found:
            counts.rows += 1
            if isinstance(row, RowError):
                bad.append(BadRow(line=line, offset=offset, reason=str(row)))
            elif reason := self._stage_encoder.misfit(row):
                bad.append(BadRow(line=line, offset=offset, reason=reason))
            else:
                examples += self._selected(row, counts)
        counts.quarantined += len(bad)
        return self._clean(examples, counts), tuple(
            sorted(bad, key=lambda row: (row.line, row.offset))
        )

    def _selected(self, row: Sequence[Example], counts: RowCounts) -> Sequence[Example]:
        """The examples of a row that the stage learns from."""
        counts.examples += len(row) or 1
        counts.empty += not row  # a row without content counts as one empty example
        selected = self._stage_encoder.select(row)
        if len(selected) < len(row):
            counts.removed[BAD_ANSWER] += len(row) - len(selected)
        return selected

    def _clean(self, examples: list[Example], counts: RowCounts) -> list[Example]:
        """The examples that cleaning leaves."""
        if self.recipe.cleaning.is_off:
            return examples
        kept: list[Example] = []
        for cleaned, rule_counts in self._cleaner.clean_all(examples):
            for rule, count in rule_counts.items():
                if rule.startswith(REMOVED):
                    counts.add_removed(EMPTY if rule == EMPTY_RULE else rule[len(REMOVED) :])
                else:
                    counts.changed[rule] += count
            if cleaned is not None:
                kept.append(cleaned)
        return kept
