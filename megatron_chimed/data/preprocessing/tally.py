"""What became of the rows of a file, counted so that nothing is lost without a number."""

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megatron_chimed.data.datasets.sidecar import Source
from megatron_chimed.data.preprocessing.documents import Documents

TEMPLATE_TAGS = "template_tags"  # taken out of the texts of conversations


@dataclass(kw_only=True)
class Tally:
    """Counts of one block or one file; the fields mean what those of `sidecar.Source` mean."""

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

    def add(self, other: "Tally") -> None:
        """Adds the counts of another."""
        for item in dataclasses.fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

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

    def source(self, file: str, size: int, first_document: int) -> Source:
        """What the sidecar says of the file."""
        self.check()
        counts = self.to_json()
        documents = first_document, first_document + counts.pop("documents")
        return Source(file=file, bytes=size, documents=documents, **counts)

    def to_json(self) -> dict[str, Any]:
        """The JSON object that `from_json` reads back."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        rules = {name: dict(sorted(values[name].items())) for name in ("removed", "changed")}
        return {**values, **rules}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Tally":
        """Reads what `to_json` gave."""
        rules = {name: Counter(value[name]) for name in ("removed", "changed")}
        return cls(**{**value, **rules})
