"""What became of every item, as JSON lines; an interrupted measure resumes by blocks of items.

While a measure runs, each finished block is a line of `items/MODEL/.MEASURE.partial`. Once all are
there, `MEASURE.jsonl` has a line for each item, and `MEASURE.json` says what it was made from. The
blocks are the same however often the job is started, so the bytes are, too.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_chimed.errors import ConfigError, OutputError
from megatron_chimed.evaluation.figures import MeasuredItem
from megatron_chimed.files import atomic_file, remove, sha256_file, write_json
from megatron_chimed.generation.jsonl_journal import JsonlJournal, read_journal

ITEMS = "items"


class ItemStore:
    """The items of one measure of one model, on rank 0.

    Args:
        folder: The evaluation's output folder.
        model: Its name.
        measure: Its name.
        identity: All that the items depend on, by name; JSON values.
        room: Where in the folder.
    """

    def __init__(
        self,
        folder: Path,
        model: str,
        measure: str,
        identity: Mapping[str, Any],
        *,
        room: str = ITEMS,
    ) -> None:
        base = folder / room / model
        self._items = base / f"{measure}.jsonl"
        self._about = base / f"{measure}.json"
        self._partial = base / f".{measure}.partial"
        self._identity = json.loads(json.dumps(identity))

    def is_finished(self) -> bool:
        """Whether all items are there.

        Raises:
            ConfigError: They are, but of another model, task or setting.
            OutputError: A file is damaged.
        """
        if not self._about.exists():
            return False
        try:
            about = json.loads(self._about.read_text(encoding="utf-8"))
            expected = about["sha256"]
        except (ValueError, KeyError, TypeError):
            raise OutputError(
                f"{self._about} is damaged. Remove it: the measure runs again."
            ) from None
        self._require_same(self._about, about)
        if not self._items.exists() or sha256_file(self._items) != expected:
            raise OutputError(
                f"{self._items} is not the file that {self._about} describes. Remove both: the "
                "measure runs again."
            )
        return True

    def finished_blocks(self) -> list[list[MeasuredItem]]:
        """The blocks that an interrupted job left.

        Raises:
            ConfigError: They are of another model, task or setting.
            OutputError: A line is damaged.
        """
        if not self._partial.exists():
            return []
        lines = read_journal(self._partial)
        first = next(lines, None)
        if first is None:
            return []
        self._require_same(self._partial, first)
        return [[item_of(fields) for fields in block] for block in lines]

    @contextlib.contextmanager
    def writing(self) -> Iterator[JsonlJournal]:
        """The journal, to which each block is a line (`block_line`)."""
        journal = JsonlJournal(self._partial, {"identity": self._identity})
        try:
            yield journal
        finally:
            journal.close()

    def finish(self, items: Sequence[MeasuredItem]) -> None:
        """Publishes all items and removes the partial file."""
        with atomic_file(self._items) as temporary, open(temporary, "w", encoding="utf-8") as out:
            for item in items:
                out.write(json.dumps(dataclasses.asdict(item), ensure_ascii=False) + "\n")
        write_json(self._about, {"identity": self._identity, "sha256": sha256_file(self._items)})
        remove(self._partial)

    def read(self) -> list[MeasuredItem]:
        """All items of a finished measure."""
        with open(self._items, encoding="utf-8") as lines:
            return [item_of(json.loads(line)) for line in lines]

    def _require_same(self, path: Path, about: Any) -> None:
        then = about.get("identity", {}) if isinstance(about, dict) else {}
        now = self._identity
        differing = [key for key in dict.fromkeys((*then, *now)) if then.get(key) != now.get(key)]
        if differing:
            raise ConfigError(
                f"{path} was made with another {' and '.join(differing)}. Choose another "
                "output_dir, or remove it and the files beside it to measure again."
            )


def block_line(block: Sequence[MeasuredItem]) -> list[dict[str, Any]]:
    """A block as JSON."""
    return [dataclasses.asdict(item) for item in block]


def item_of(fields: Mapping[str, Any]) -> MeasuredItem:
    """An item from JSON."""
    return MeasuredItem(**fields)
