"""Corpora to token files: the body of tools/preprocess_data.py.

Streaming, ordered, and with the same bytes out for any number of workers and after any kill
followed by the same command. Nothing appears under a final name unless all of it is good.
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
from megatron_chimed.data.datasets.sidecar import Sidecar, Source, read_sidecar
from megatron_chimed.data.preprocessing.deduplication import NAME as SIGNATURES
from megatron_chimed.data.preprocessing.deduplication import DuplicateFilter
from megatron_chimed.data.preprocessing.journal import Journal
from megatron_chimed.data.preprocessing.plan import Plan, PreprocessConfig, make_plan
from megatron_chimed.data.preprocessing.pool import encode_blocks
from megatron_chimed.data.preprocessing.quarantine import Quarantine
from megatron_chimed.data.preprocessing.spool import WorkFolder
from megatron_chimed.data.preprocessing.tally import Tally
from megatron_chimed.data.preprocessing.worker import EncodedBlock
from megatron_chimed.data.preprocessing.writer import (
    QUARANTINE,
    SIDECAR,
    SUFFIXES,
    IndexedWriter,
    output_path,
    publish_sealed,
    refuse_existing,
)
from megatron_chimed.data.reading import Block, iter_blocks
from megatron_chimed.errors import DataError

JOURNAL_SECONDS = 5.0  # of work that a kill may cost
RUNNING, SEALED = "running", "sealed"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is."""

    bytes: int
    """Input bytes done."""

    total_bytes: int
    """Input bytes in all."""

    documents: int
    """Documents written."""

    tokens: int
    """Tokens written, end-of-document tokens included."""


def preprocess(
    config: PreprocessConfig,
    report: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda message: None,
) -> Sidecar:
    """Tokenizes the inputs and writes the files of a prefix.

    Args:
        config: What to do.
        report: Called at the start and after each block of about 1 MiB.
        say: Called with what a user should know at once, such as that the run goes on.

    Returns:
        The sidecar that was written.

    Raises:
        ConfigError: The inputs, the tokenizer or the template do not exist or fit.
        DataError: A malformed row, too many of them, or no document at all.
        OutputError: The output exists or cannot be written.
        ParallelError: A worker was killed.
    """
    # Files that are there are looked at later: they may be what this very run has finished.
    sidecar_path = output_path(config.output_prefix, SIDECAR)
    check_output("--output-prefix", sidecar_path, overwrite=True)
    plan = make_plan(config)
    with WorkFolder(config.output_prefix) as folder:
        journal = Journal(folder.path, plan.fingerprint)
        folder.keep = journal.is_found
        if journal.state is None or journal.state["phase"] == RUNNING:
            if not config.overwrite:
                if finished := _finished(plan, folder, journal):
                    say(f"{config.output_prefix} is complete: only the work folder was left")
                    return finished
                refuse_existing(config.output_prefix)
            if journal.state is None or not _is_whole(folder, journal.state):
                _start_afresh(folder, journal, say)
            with _promise(folder, say), contextlib.closing(_Run(plan, folder, journal)) as run:
                run.work(report, say)
        # From here on a kill leaves files that are complete; the same command moves the rest.
        publish_sealed(folder.path, config.output_prefix, config.stage)
        folder.keep = False
        return read_sidecar(sidecar_path)


def _start_afresh(folder: WorkFolder, journal: Journal, say: Callable[[str], None]) -> None:
    if journal.differences:
        say(
            f"{folder.path} holds a run with other {', '.join(journal.differences)}: it is "
            "dropped, this one starts afresh"
        )
    elif journal.is_found:
        say(
            f"{folder.path} holds less than its journal counts, the disk lost data: it is "
            "dropped, this run starts afresh"
        )
    journal.state = None
    folder.sweep()
    folder.keep = False


def _is_whole(folder: WorkFolder, state: dict[str, Any]) -> bool:
    """Whether the files that grow hold all that a journal counts."""
    sizes = {
        **state["writer"]["spools"],
        QUARANTINE: state["quarantine"],
        SIGNATURES: state["signatures"],
    }
    paths = {folder.path / name: size for name, size in sizes.items() if size}
    return all(path.exists() and path.stat().st_size >= size for path, size in paths.items())


def _finished(plan: Plan, folder: WorkFolder, journal: Journal) -> Sidecar | None:
    """What this command wrote before it was killed while it removed its work folder."""
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
def _promise(folder: WorkFolder, say: Callable[[str], None]) -> Iterator[None]:
    """Says after any error what is not lost."""
    try:
        yield
    except BaseException:
        if folder.keep:
            say(f"what was done is kept in {folder.path}: the same command goes on from there")
        raise


class _Run:
    """One run: its open files and its counts."""

    def __init__(self, plan: Plan, folder: WorkFolder, journal: Journal) -> None:
        state = journal.state or {}
        config = plan.config
        self.plan, self.folder, self.journal = plan, folder, journal
        self.writer = IndexedWriter(
            config.output_prefix,
            plan.dtype,
            overwrite=True,  # looked at before
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
        counts = state.get("tallies") or [Tally().to_json() for _ in plan.inputs]
        self.tallies = [Tally.from_json(count) for count in counts]
        self.report = report_from_json(state["cleaning"]) if state else CleaningReport()
        self.file, self.number = state.get("next", (0, 0))
        self.bytes = state.get("bytes", 0)
        sizes = (item.size for item in plan.inputs)
        self.starts = [0, *itertools.accumulate(sizes)]  # bytes before each file

    def work(self, report: Callable[[Progress], None], say: Callable[[str], None]) -> None:
        """Encodes what is left and seals the files."""
        total = self.plan.total_bytes
        if self.journal.state is not None:
            say(
                f"resumed at {self.bytes / 1e6:,.1f} of {total / 1e6:,.1f} MB: "
                f"{self.writer.documents:,} documents were done"
            )
        recipe, workers = self.plan.recipe, self.plan.config.workers
        saved = time.monotonic()
        self._report(report)
        with contextlib.closing(encode_blocks(self._blocks(), recipe, workers)) as encoded:
            for _ in map(self._take, encoded):  # no name keeps a block while the next is made
                self._report(report)
                if time.monotonic() - saved >= JOURNAL_SECONDS:
                    self.save(RUNNING)
                    saved = time.monotonic()
        self._judge()
        self.writer.seal(self._describe)
        self.save(SEALED)

    def save(self, phase: str) -> None:
        """Makes all so far durable, then journals it."""
        self.journal.save(
            {
                "phase": phase,
                "next": (self.file, self.number),
                "bytes": self.bytes,
                "writer": self.writer.sync(),
                "quarantine": self.quarantine.sync(),
                "signatures": 0 if self.duplicates is None else self.duplicates.sync(),
                "cleaning": dataclasses.asdict(self.report),
                "tallies": [tally.to_json() for tally in self.tallies],
            }
        )
        self.folder.keep = True

    def close(self) -> None:
        """Closes the files; what happens to them is the folder's to decide."""
        self.writer.close()
        self.quarantine.close()
        if self.duplicates is not None:
            self.duplicates.close()

    def _blocks(self) -> Iterator[Block]:
        """The blocks that are not done; those of a file before them are read again."""
        first = self.file, self.number
        for block in iter_blocks(
            self.plan.inputs, first_file=first[0], max_row_bytes=self.plan.config.max_row_bytes
        ):
            if (block.file, block.number) >= first:
                yield block

    def _take(self, block: EncodedBlock) -> None:
        tally = self.tallies[block.file]
        for row in block.bad:
            self.quarantine.add(str(self.plan.inputs[block.file].path), row)
        tally.add(block.tally)
        documents = block.documents
        if self.duplicates is not None:
            is_first = self.duplicates.first_ones(block.signatures)
            documents = documents.keep(is_first)
            repeated = len(is_first) - int(is_first.sum())
            rule = f"{self.plan.config.cleaning.deduplicate}_duplicate"
            tally.removed.update({rule: repeated} if repeated else {})
        self.report = merge_reports([self.report, block.report])
        self.writer.add(documents)
        tally.add_documents(documents)
        tally.check()
        self.file, self.number = block.file, block.number + 1
        self.bytes = self.starts[block.file] + block.position

    def _report(self, report: Callable[[Progress], None]) -> None:
        report(
            Progress(
                bytes=self.bytes,
                total_bytes=self.plan.total_bytes,
                documents=self.writer.documents,
                tokens=self.writer.tokens,
            )
        )

    def _judge(self) -> None:
        """Raises where the result is not to be had."""
        config = self.plan.config.cleaning
        self.quarantine.judge(
            bad=sum(tally.quarantined for tally in self.tallies),
            rows=sum(tally.rows for tally in self.tallies),
        )
        self.plan.check_inputs_unchanged()
        if config.decontaminate:
            Decontaminator(config).check(self.report.found)
        if self.writer.documents == 0:
            total = Tally()
            for tally in self.tallies:
                total.add(tally)
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
            eod_id=tokenizer.eos_id if is_text and config.append_eod else None,
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
        """The settings that are on, what each rule did, and the overlap with test files."""
        config = self.plan.config.cleaning
        if config.is_off:
            return {}
        reports = [self.report]
        if self.duplicates is not None:
            reports.append(self.duplicates.report())
        report = dataclasses.asdict(merge_reports(reports))
        found = report.pop("found")
        if config.decontaminate:
            overlaps = Decontaminator(config).overlaps(found)
            report["decontamination"] = [dataclasses.asdict(item) for item in overlaps]
        return {"settings": dataclasses.asdict(config), **report}

    def _sources(self) -> tuple[Source, ...]:
        sources: list[Source] = []
        first = 0
        for item, tally in zip(self.plan.inputs, self.tallies, strict=True):
            sources.append(tally.source(str(item.path), item.size, first))
            first += tally.documents
        return tuple(sources)
