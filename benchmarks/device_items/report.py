"""The JSON of benchmarks/device_check.py as a table for people and as rows of RESULTS.md."""

from collections.abc import Iterator, Mapping
from typing import Any

NOT_AVAILABLE = "not available"


def markdown(result: Mapping[str, Any]) -> str:
    """A section of RESULTS.md: where it was measured, then a table of all figures."""
    machine = [row for row in _rows(result, "environment") if row["value"] is not None]
    facts = ", ".join(
        f"{row['what']} {row['value']}" for row in machine if row["what"] in ("GPU", "torch")
    )
    title = "REHEARSAL: no GPU, the figures mean nothing" if result["rehearsal"] else facts
    lines = [f"{title}. Commit {result['commit']}, {result['started']}, `{result['command']}`.", ""]
    lines += ["| item | figure | measured | goal | |", "|---|---|---|---|---|"]
    for name, item in result["items"].items():
        if name != "environment":
            lines += list(_lines(name, item))
    return "\n".join(lines) + "\n"


def summary(result: Mapping[str, Any]) -> str:
    """One line for each item, and the goals that were missed."""
    lines, missed = [f"{'item':14}{'':12}{'seconds':>8}{'rows':>6}{'met':>5}{'missed':>8}"], []
    for name, item in result["items"].items():
        rows = item["rows"]
        met = sum(row["met"] is True for row in rows)
        bad = [row for row in rows if row["met"] is False]
        seconds = f"{item['seconds']:.1f}" if item["seconds"] is not None else "-"
        lines.append(f"{name:14}{item['status']:12}{seconds:>8}{len(rows):>6}{met:>5}{len(bad):>8}")
        missed += [f"missed: {name}: {row['what']}: {measured(row)}, {row['goal']}" for row in bad]
        if item["error"]:
            missed.append(f"{item['status']}: {name}: {item['error'].strip().splitlines()[-1]}")
    return "\n".join([*lines, *missed])


def measured(row: Mapping[str, Any]) -> str:
    """A row's value with its unit, to three digits."""
    value, unit = row["value"], row["unit"]
    if value is None:
        return f"{NOT_AVAILABLE}: {row['details'].get('why', 'no reason given')}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if unit.startswith("of "):
        return f"{value:.1%} {unit}"
    text = f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"
    return f"{text} {unit}".strip()


def _lines(name: str, item: Mapping[str, Any]) -> Iterator[str]:
    if item["status"] != "done":
        last = (item["error"].strip().splitlines() or ["no message"])[-1]
        yield f"| {name} | the item itself | {item['status']}: {_cell(last)} | | |"
    for row in item["rows"]:
        verdict = {True: "reached", False: "**missed**", None: ""}[row["met"]]
        cells = [name, row["what"], measured(row), row["goal"], verdict]
        yield f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _rows(result: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return result["items"].get(name, {"rows": []})["rows"]
