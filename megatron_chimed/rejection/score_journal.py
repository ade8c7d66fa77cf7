"""Scores of an unfinished file of candidates, kept on disk so that a restart resumes from them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from megatron_chimed.generation.jsonl_journal import JsonlJournal, read_journal
from megatron_chimed.rejection.candidate import Candidate


class ScoreJournal:
    """Scores of the first candidates, in order, one line per slice; rank 0 opens it.

    They belong to exactly these candidates: the first line is a digest of them.

    Args:
        output: The file that will hold the candidates; the journal is a hidden file beside it.
        candidates: All candidates of that file.
    """

    def __init__(self, output: Path, candidates: Sequence[Candidate]) -> None:
        self._path = _journal_path(output)
        digest = hashlib.sha256()
        for candidate in candidates:
            digest.update(f"{candidate.prompt_id}\0{candidate.text}\0".encode())
        self._identity = {"candidates": digest.hexdigest()}
        self._journal: JsonlJournal | None = None

    def open(self) -> list[float | None]:
        """Returns the scores kept so far; those of other candidates are discarded."""
        lines = read_journal(self._path) if self._path.exists() else iter(())
        scores: list[float | None] = []
        if next(lines, None) == self._identity:
            scores = [score for line in lines for score in line]
        else:
            self._path.unlink(missing_ok=True)
        self._journal = JsonlJournal(self._path, self._identity)
        return scores

    def add(self, scores: Sequence[float | None]) -> None:
        """Adds the scores of the next slice."""
        assert self._journal is not None, "open the journal first"
        self._journal.write(scores)

    def close(self) -> None:
        """Closes the file, which stays."""
        if self._journal:
            self._journal.close()


def remove_score_journal(output: Path) -> None:
    """Removes the journal, once `output` is written."""
    _journal_path(output).unlink(missing_ok=True)


def _journal_path(output: Path) -> Path:
    return output.with_name(f".{output.name}.scores")
