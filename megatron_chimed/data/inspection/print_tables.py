"""Prints findings, statistics and differences as tables."""

import itertools
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.text import Text

from megatron_chimed.data.datasets.prefix import Prefix
from megatron_chimed.data.datasets.sidecar import SourceSummary
from megatron_chimed.data.inspection.comparison import (
    compare_facts,
    first_difference,
    tokens_of,
)
from megatron_chimed.data.inspection.findings import Finding
from megatron_chimed.data.inspection.print_views import decode, make_table, tokenizer_of, visible
from megatron_chimed.data.inspection.ranking_verification import count_ties
from megatron_chimed.data.inspection.statistics import QUANTILES, UNITS, fill_rows, length_rows
from megatron_chimed.errors import ConfigError
from megatron_chimed.observe.console import print_table

VERDICT_STYLES = {"ok": "green", "WRONG": "bold red", "unknown": "yellow"}
FILL_SEED = 1234  # seed of the order of the measured samples
AROUND = 24  # tokens shown before and after the first that differs
SOURCE_COLUMNS: dict[str, Callable[[SourceSummary], int]] = {
    "bytes": lambda s: s.bytes,
    "rows": lambda s: s.rows,
    "malformed": lambda s: s.quarantined,
    "examples": lambda s: s.examples,
    "empty": lambda s: s.empty,
    "removed": lambda s: sum(s.removed.values()),
    "documents": lambda s: s.documents[1] - s.documents[0],
    "shortened": lambda s: s.truncated,
    "turns cut": lambda s: s.dropped_turns,
    "tokens": lambda s: s.tokens,
}
MASK_COLUMNS: dict[str, Callable[[SourceSummary], int]] = {
    "supervised": lambda s: s.supervised_tokens,
    "ends": lambda s: s.end_tokens,
}


def print_findings(name: str, findings: Sequence[Finding], console: Console) -> None:
    """Prints the findings, one line each."""
    table = make_table(console, title=name)
    for header in ("", "what", "found"):
        table.add_column(header, overflow="fold")
    for finding in findings:
        mark = Text(finding.verdict, VERDICT_STYLES[finding.verdict])
        table.add_row(mark, finding.what, Text(visible(finding.detail)))
    print_table(table, console)


def print_lengths(prefix: Prefix, console: Console) -> None:
    """Prints statistics of sequence lengths."""
    unit = UNITS[prefix.stage]
    table = make_table(console, title=f"{prefix.name}: tokens per {unit.removesuffix('s')}")
    table.add_column("source", overflow="fold")
    names = ["shortest", *(f"{quantile:.0%}" for quantile in QUANTILES[1:-1]), "longest"]
    for header in (unit, "tokens", "mean", *names):
        table.add_column(header, justify="right")
    for row in length_rows(prefix):
        numbers = (f"{row.sequences:,}", f"{row.tokens:,}", f"{row.mean:.1f}")
        table.add_row(visible(row.name), *numbers, *(f"{value:,}" for value in row.quantiles))
    print_table(table, console)
    if prefix.rankings is not None:
        groups, sequences = prefix.indexed.num_documents, len(prefix.indexed)
        console.print(
            f"{groups:,} groups of {sequences / max(groups, 1):.2f} candidates on average, "
            f"{count_ties(prefix):,} with a tie"
        )


def print_sources(prefix: Prefix, console: Console) -> None:
    """Prints what became of each source, if there is a sidecar."""
    sidecar = prefix.indexed.sidecar
    if sidecar is None:
        console.print("no sidecar: the origin of the documents is unknown")
        return
    columns = SOURCE_COLUMNS | (MASK_COLUMNS if prefix.targets is not None else {})
    table = make_table(console, title="what became of each source")
    table.add_column("source", overflow="fold")
    for header in columns:
        table.add_column(header, justify="right")
    for source in sidecar.sources:
        table.add_row(visible(source.file), *(f"{count(source):,}" for count in columns.values()))
    if len(sidecar.sources) > 1:
        sums = (sum(map(count, sidecar.sources)) for count in columns.values())
        table.add_row("all", *(f"{total:,}" for total in sums), style="bold")
    print_table(table, console)
    for kind in ("removed", "changed"):
        names = {name for source in sidecar.sources for name in getattr(source, kind)}
        counts = (
            f"{name} {sum(getattr(source, kind).get(name, 0) for source in sidecar.sources):,}"
            for name in sorted(names)
        )
        if names:
            console.print(f"{kind}: {', '.join(counts)}", markup=False)
    if prefix.targets is not None and sidecar.tokens:
        share = sidecar.supervised_tokens / sidecar.tokens
        ends = sidecar.end_tokens / max(sidecar.sequences, 1)
        console.print(
            f"{share:.1%} of the tokens are supervised, {ends:.2f} ends of answers per "
            f"{UNITS[prefix.stage].removesuffix('s')}"
        )


def print_fill(prefix: Prefix, seq_length: int, console: Console) -> None:
    """Prints how well samples of that length are filled."""
    table = make_table(console, title=f"samples of {seq_length:,} tokens")
    table.add_column("method")
    for header in ("samples per epoch", "padding", "learned", "segments per sample", "measured"):
        table.add_column(header, justify="right")
    rows = list(fill_rows(prefix.name, prefix, seq_length=seq_length, seed=FILL_SEED))
    for row in rows:
        table.add_row(
            row.method,
            f"{row.samples:,}",
            f"{row.padding:.3%}",
            f"{row.learned:.1%}",
            f"{row.segments:.1f}",
            "all" if row.measured == row.samples else f"{row.measured:,}",
        )
    print_table(table, console)
    for note in itertools.chain.from_iterable(row.notes for row in rows):
        console.print(f"note: {note}", markup=False, soft_wrap=True)


def print_difference(
    left: Prefix, right: Prefix, tokenizer_path: str | None, console: Console
) -> bool:
    """Prints the differences of two prefixes; returns whether there are any."""
    facts = list(compare_facts(left, right))
    if facts:
        table = make_table(console, title="differs")
        for header in ("what", left.name, right.name):
            table.add_column(visible(header), overflow="fold")
        for item in facts:
            table.add_row(*(Text(visible(text)) for text in (item.what, item.left, item.right)))
        print_table(table, console)
    found = first_difference(left, right)
    common = min(left.indexed.num_documents, right.indexed.num_documents)
    if found is None:
        console.print(f"the first {common:,} documents are equal")
        return bool(facts)
    where = "in ranks, prompt or sequences" if found.token is None else f"at token {found.token}"
    console.print(Text(f"document {found.document} is the first that differs, {where}", "bold"))
    for prefix in (left, right):
        _print_around(prefix, found.document, found.token, tokenizer_path, console)
    return True


def _print_around(
    prefix: Prefix, document: int, token: int | None, tokenizer_path: str | None, console: Console
) -> None:
    """Prints ids around a token of a document, and text if the tokenizer is known."""
    tokens = tokens_of(prefix, document, document + 1)
    first = max(tokens.start + (token or 0) - AROUND, tokens.start)
    shown = slice(first, min(tokens.start + (token or 0) + AROUND, tokens.stop))
    ids = prefix.indexed.tokens[shown].tolist()
    count = tokens.stop - tokens.start
    title = (
        f"{prefix.name}, document {document}: {count} tokens, starting at {first - tokens.start}"
    )
    console.print(Text(visible(title), "bold cyan"))
    rows = [("ids", " ".join(map(str, ids)))]
    if prefix.targets is not None:
        rows.append(("mask", " ".join(map(str, prefix.targets[shown].tolist()))))
    if prefix.rankings is not None:
        sequences = slice(*prefix.indexed.document_indices[document : document + 2].tolist())
        rows.append(("ranks", " ".join(map(str, prefix.rankings.ranks[sequences].tolist()))))
        rows.append(("prompt", str(int(prefix.rankings.prompt_lengths[document]))))
    try:
        tokenizer = tokenizer_of(prefix.name, prefix.indexed.sidecar, tokenizer_path)
        rows.append(("text", visible(decode(ids, tokenizer))))
    except ConfigError as error:
        rows.append(("text", f"not shown: {error}"))
    for name, text in rows:
        console.print(Text.assemble((f"{name:>6} | ", "bold"), text), soft_wrap=True)
