"""Turns corpora into token files: the body of tools/preprocess_data.py.

Input is streamed in order. Output is byte-identical for any number of workers, and after a kill
followed by the same command. No file is published unless the whole output is valid.
"""

import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from megatron_chimed.command_line import check_output
from megatron_chimed.data.cleaning.decontaminate import Decontaminator
from megatron_chimed.data.cleaning.report import (
    CleaningReport,
    merge_reports,
    report_from_json,
)
from megatron_chimed.data.datasets.sidecar import Sidecar, SourceSummary, read_sidecar
from megatron_chimed.data.preprocessing.block_encoder import BlockEncoder, EncodedBlock, RowCounts
from megatron_chimed.data.preprocessing.deduplication import NAME as SIGNATURES
from megatron_chimed.data.preprocessing.deduplication import DuplicateFilter
from megatron_chimed.data.preprocessing.journal import Journal, WorkFolder
from megatron_chimed.data.preprocessing.plan import Plan, PreprocessConfig, make_plan
from megatron_chimed.data.preprocessing.quarantine import FileRows, Quarantine
from megatron_chimed.data.preprocessing.worker_pool import encode_blocks
from megatron_chimed.data.preprocessing.writer import (
    QUARANTINE,
    SIDECAR,
    SUFFIXES,
    IndexedWriter,
    output_path,
    publish_sealed,
    refuse_existing,
)
from megatron_chimed.data.reading import RowBlock, iter_blocks
from megatron_chimed.errors import DataError

JOURNAL_SECONDS = 5.0  # between journal entries: the work that a kill may cost
HOPELESS_ROWS = 1000  # all malformed: counting on would not change what is wrong
RUNNING, SEALED = "running", "sealed"


@dataclass(frozen=True, kw_only=True)
class PreprocessProgress:
    """How far a run is."""

    bytes: int
    """Input bytes processed."""

    total_bytes: int
    """Size of all input files."""

    documents: int
    """Documents written."""

    tokens: int
    """Tokens written, end-of-document tokens included."""


def preprocess(
    config: PreprocessConfig,
    report: Callable[[PreprocessProgress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda message: None,
) -> Sidecar:
    """Tokenizes the inputs and writes the files of a prefix.

    Args:
        config: What to do.
        report: Called at the start and after each block of about 1 MiB.
        say: Called with messages for the user, such as that the run was resumed.

    Returns:
        The sidecar that was written.

    Raises:
        ConfigError: The inputs, the tokenizer or the template do not exist or do not fit.
        DataError: A row is malformed, too many are, or there is no document.
        OutputError: The output exists or cannot be written.
        ParallelError: A worker was killed.
    """
    # Existing output is checked later: it may be the finished output of this very run.
    sidecar_path = output_path(config.output_prefix, SIDECAR)
    check_output("--output-prefix", sidecar_path, overwrite=True)
    plan = make_plan(config)
    with WorkFolder(config.output_prefix) as folder:
        journal = Journal(folder.path, plan.fingerprint)
        folder.keep = journal.is_found
        if journal.state is None or journal.state["phase"] == RUNNING:
            if not config.overwrite:
                if finished := _finished(plan, folder, journal):
                    say(f"{config.output_prefix} is complete: removed a leftover work folder")
                    return finished
                refuse_existing(config.output_prefix)
            if journal.state is None or not _is_complete(folder, journal.state):
                _start_from_scratch(folder, journal, say)
            with (
                _say_what_is_kept(folder, say),
                contextlib.closing(_PreprocessRun(plan, folder, journal)) as run,
            ):
                run.work(report, say)
        # After a kill from here on, the same command publishes the remaining files.
        publish_sealed(folder.path, config.output_prefix, config.stage)
        folder.keep = False
        return read_sidecar(sidecar_path)


def _start_from_scratch(folder: WorkFolder, journal: Journal, say: Callable[[str], None]) -> None:
    if journal.differences:
        say(
            f"{folder.path} holds a run with different {', '.join(journal.differences)}: it is "
            "discarded and this run starts from scratch"
        )
    elif journal.is_found:
        say(
            f"{folder.path} holds less data than its journal counts, the disk lost some: it is "
            "discarded and this run starts from scratch"
        )
    journal.state = None
    folder.sweep()
    folder.keep = False


def _is_complete(folder: WorkFolder, state: dict[str, Any]) -> bool:
    """Whether the spools hold everything that the journal counts."""
    sizes = {
        **state["writer"]["spools"],
        QUARANTINE: state["quarantine"],
        SIGNATURES: state["signatures"],
    }
    paths = {folder.path / name: size for name, size in sizes.items() if size}
    return all(path.exists() and path.stat().st_size >= size for path, size in paths.items())


def _finished(plan: Plan, folder: WorkFolder, journal: Journal) -> Sidecar | None:
    """The output of this command if it was killed while removing its work folder, else None."""
    config = plan.config
    path = output_path(config.output_prefix, SIDECAR)
    paths = [output_path(config.output_prefix, suffix) for suffix in SUFFIXES[config.stage]]
    is_there = all(path.exists() for path in paths if not path.name.endswith(QUARANTINE))
    if journal.is_found or not folder.was_there or not is_there:
        return None
    newest = max(os.stat(item.path).st_mtime_ns for item in plan.inputs)
    sidecar = read_sidecar(path)
    theirs = sidecar.command, sidecar.tokenizer_sha256, sidecar.rendering
    ours = config.command(), plan.tokenizer.identity, plan.rendering
    sizes = [(source.file, source.bytes) for source in sidecar.sources]
    is_same = theirs == ours and sizes == [(str(item.path), item.size) for item in plan.inputs]
    return sidecar if is_same and path.stat().st_mtime_ns >= newest else None


@contextlib.contextmanager
def _say_what_is_kept(folder: WorkFolder, say: Callable[[str], None]) -> Iterator[None]:
    """After any error, tells the user what is kept."""
    try:
        yield
    except BaseException:
        if folder.keep:
            say(f"progress is kept in {folder.path}: run the same command again to resume")
        raise


class _PreprocessRun:
    """The open files and counts of one run."""

    def __init__(self, plan: Plan, folder: WorkFolder, journal: Journal) -> None:
        state = journal.state or {}
        config = plan.config
        self.plan, self.folder, self.journal = plan, folder, journal
        self.writer = IndexedWriter(
            config.output_prefix,
            plan.dtype,
            overwrite=True,  # checked before
            stage=config.stage,
            folder=folder,
            state=state.get("writer"),
        )
        self.quarantine = Quarantine(
            folder.path,
            config.output_prefix,
            max_bad_rate=config.max_bad_rate,
            size=state.get("quarantine", 0),
        )
        self.duplicates = None
        if config.cleaning.deduplicate != "off":
            size = state.get("signatures", 0)
            self.duplicates = DuplicateFilter(folder.path, config.cleaning, size=size)
        counts = state.get("tallies") or [RowCounts().to_json() for _ in plan.inputs]
        self.counts = [RowCounts.from_json(count) for count in counts]
        self.report = report_from_json(state["cleaning"]) if state else CleaningReport()
        self.file, self.number = state.get("next", (0, 0))
        self.bytes = state.get("bytes", 0)
        sizes = (item.size for item in plan.inputs)
        self.starts = [0, *itertools.accumulate(sizes)]  # bytes before each file

    def work(
        self, report: Callable[[PreprocessProgress], None], say: Callable[[str], None]
    ) -> None:
        """Encodes the remaining blocks and seals the files."""
        total = self.plan.total_bytes
        if self.journal.state is not None:
            say(
                f"resumed at {self.bytes / 1e6:,.1f} of {total / 1e6:,.1f} MB: "
                f"{self.writer.documents:,} documents are done"
            )
        recipe, workers, tokenizer = self.plan.recipe, self.plan.config.workers, self.plan.tokenizer
        saved = time.monotonic()
        self._report(report)
        with contextlib.closing(
            encode_blocks(self._blocks(), recipe, workers, tokenizer)
        ) as encoded:
            for has_failed in map(self._take, encoded):  # no variable keeps a block alive
                self._report(report)
                if has_failed:
                    break
                if time.monotonic() - saved >= JOURNAL_SECONDS:
                    self.save(RUNNING)
                    saved = time.monotonic()
        if self._has_failed():
            self._count_bad_rows()
        self._check_result()
        self.writer.seal(self._describe)
        self.save(SEALED)

    def save(self, phase: str) -> None:
        """Makes everything so far durable, then records it in the journal."""
        self.journal.save(
            {
                "phase": phase,
                "next": (self.file, self.number),
                "bytes": self.bytes,
                "writer": self.writer.sync(),
                "quarantine": self.quarantine.sync(),
                "signatures": 0 if self.duplicates is None else self.duplicates.sync(),
                "cleaning": dataclasses.asdict(self.report),
                "tallies": [counts.to_json() for counts in self.counts],
            }
        )
        self.folder.keep = True

    def close(self) -> None:
        """Closes the files; the work folder decides whether they are kept."""
        self.writer.close()
        self.quarantine.close()
        if self.duplicates is not None:
            self.duplicates.close()

    def _blocks(self) -> Iterator[RowBlock]:
        """The remaining blocks; earlier blocks of the current file are read again and skipped."""
        first = self.file, self.number
        for block in iter_blocks(
            self.plan.inputs, first_file=first[0], max_row_bytes=self.plan.config.max_row_bytes
        ):
            if (block.file, block.number) >= first:
                yield block

    def _has_failed(self) -> bool:
        """Whether a row is malformed and none may be."""
        is_strict = self.plan.config.max_bad_rate == 0.0
        return is_strict and any(counts.quarantined for counts in self.counts)

    def _count_bad_rows(self) -> None:
        """Reads the remaining rows without encoding them: the error names all malformed ones.

        Stops early at a file that is not what the command takes it for.
        """
        reader = BlockEncoder(self.plan.recipe, self.plan.tokenizer)
        for block in self._blocks():
            counts = self.counts[block.file]
            found, bad = reader.count(block)
            for row in bad:
                self.quarantine.add(str(self.plan.inputs[block.file].path), row)
            counts.rows += found.rows
            counts.quarantined += found.quarantined
            if counts.quarantined == counts.rows >= HOPELESS_ROWS:
                return

    def _take(self, block: EncodedBlock) -> bool:
        """Keeps what a block gave; returns whether the run has failed."""
        counts = self.counts[block.file]
        for row in block.bad:
            self.quarantine.add(str(self.plan.inputs[block.file].path), row)
        counts.add(block.counts)
        documents = block.documents
        if self.duplicates is not None:
            is_first = self.duplicates.is_first(block.signatures)
            documents = documents.keep(is_first)
            repeated = len(is_first) - int(is_first.sum())
            rule = f"{self.plan.config.cleaning.deduplicate}_duplicate"
            counts.removed.update({rule: repeated} if repeated else {})
        self.report = merge_reports([self.report, block.report])
        self.writer.add(documents)
        counts.add_documents(documents)
        counts.check()
        self.file, self.number = block.file, block.number + 1
        self.bytes = self.starts[block.file] + block.position
        return bool(block.bad) and self._has_failed()

    def _report(self, report: Callable[[PreprocessProgress], None]) -> None:
        report(
            PreprocessProgress(
                bytes=self.bytes,
                total_bytes=self.plan.total_bytes,
                documents=self.writer.documents,
                tokens=self.writer.tokens,
            )
        )

    def _check_result(self) -> None:
        """Raises if the result must not be published."""
        config = self.plan.config.cleaning
        pairs = zip(self.plan.inputs, self.counts, strict=True)
        self.quarantine.check_rate(
            [FileRows(str(item.path), found.quarantined, found.rows) for item, found in pairs]
        )
        self.plan.check_inputs_unchanged()
        if config.decontaminate:
            Decontaminator(config).check(self.report.found)
        if self.writer.documents == 0:
            total = RowCounts()
            for counts in self.counts:
                total.add(counts)
            raise DataError(
                f"no document in {', '.join(self.plan.config.inputs)}: of {total.rows} rows, "
                f"{total.quarantined} are malformed, {total.empty} empty and "
                f"{total.removed.total()} removed ({dict(total.removed)})."
            )

    def _describe(self, bin_sha256: str, idx_sha256: str) -> Sidecar:
        writer, config, tokenizer = self.writer, self.plan.config, self.plan.tokenizer
        is_text = config.stage == "pretrain"
        return Sidecar(
            stage=config.stage,
            tokenizer_name=config.tokenizer,
            tokenizer_sha256=tokenizer.identity,
            vocab_size=tokenizer.vocab_size,
            eod_id=tokenizer.eod_id if is_text and config.append_eod else None,
            max_token_id=writer.max_token_id,
            dtype=writer.dtype.name,
            sequences=writer.sequences,
            documents=writer.documents,
            tokens=writer.tokens,
            bin_sha256=bin_sha256,
            idx_sha256=idx_sha256,
            sources=self._sources(),
            command=config.command(),
            rendering=self.plan.rendering,
            cleaning=self._cleaning(),
        )

    def _cleaning(self) -> dict[str, Any]:
        """The settings, what each rule did, and the overlap with test files."""
        config = self.plan.config.cleaning
        if config.is_off:
            return {}
        reports = [self.report]
        if self.duplicates is not None:
            reports.append(self.duplicates.report())
        report = dataclasses.asdict(merge_reports(reports))
        del report["found"]
        if config.decontaminate:
            overlaps = Decontaminator(config).overlaps(self.report.found)
            report["decontamination"] = [dataclasses.asdict(item) for item in overlaps]
        return {"settings": dataclasses.asdict(config), **report}

    def _sources(self) -> tuple[SourceSummary, ...]:
        sources: list[SourceSummary] = []
        first = 0
        for item, counts in zip(self.plan.inputs, self.counts, strict=True):
            sources.append(counts.summarize(str(item.path), item.size, first))
            first += counts.documents
        return tuple(sources)
