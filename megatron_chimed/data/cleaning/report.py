"""Reports of what cleaning did, per rule."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_EXAMPLES = 5  # shown per rule


@dataclass(frozen=True, kw_only=True)
class RuleReport:
    """What one rule did."""

    rule: str
    """Its name: `normalize.full_width`, `deidentify.phone`, `removed.duplicate`, ..."""

    count: int
    """Places changed; for `removed` rules, examples removed."""

    examples: tuple[str, ...] = ()
    """The first few examples, free of personal data."""


@dataclass(frozen=True, kw_only=True)
class FoundItem:
    """A test question that was found in cleaned examples."""

    item: int
    """Its number, as counted by `Decontaminator`."""

    score: float
    """Largest share of it that an example covers."""

    kept: int
    """Examples that hold it and were kept."""

    removed: int
    """Examples that hold it and were removed."""


@dataclass(frozen=True, kw_only=True)
class CleaningReport:
    """What all rules did to some examples."""

    seen: int = 0
    """Examples that went in."""

    removed: int = 0
    """Examples that did not come out."""

    rules: tuple[RuleReport, ...] = ()
    """The rules that applied, by name."""

    found: tuple[FoundItem, ...] = ()
    """Test questions found in the cleaned examples, by number."""


def merge_reports(reports: Iterable[CleaningReport]) -> CleaningReport:
    """Merges reports given in the order of the data."""
    reports = list(reports)
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for rule in itertools.chain.from_iterable(report.rules for report in reports):
        counts[rule.rule] += rule.count
        add_examples(examples, rule.rule, rule.examples)
    return CleaningReport(
        seen=sum(report.seen for report in reports),
        removed=sum(report.removed for report in reports),
        rules=make_rules(counts, examples),
        found=merge_found(item for report in reports for item in report.found),
    )


def merge_found(found: Iterable[FoundItem]) -> tuple[FoundItem, ...]:
    """One entry per item, by number."""
    merged: dict[int, FoundItem] = {}
    for each in found:
        so_far = merged.get(each.item, FoundItem(item=each.item, score=0.0, kept=0, removed=0))
        merged[each.item] = FoundItem(
            item=each.item,
            score=max(each.score, so_far.score),
            kept=each.kept + so_far.kept,
            removed=each.removed + so_far.removed,
        )
    return tuple(merged[item] for item in sorted(merged))


def add_examples(examples: dict[str, list[str]], rule: str, more: Iterable[str]) -> None:
    """Appends new examples up to `MAX_EXAMPLES`."""
    shown = examples.setdefault(rule, [])
    shown += [example for example in more if example and example not in shown]
    del shown[MAX_EXAMPLES:]


def make_rules(
    counts: Mapping[str, int], examples: Mapping[str, Iterable[str]]
) -> tuple[RuleReport, ...]:
    """The rules of a report from counts and examples."""
    return tuple(
        RuleReport(rule=rule, count=counts[rule], examples=tuple(examples.get(rule, ())))
        for rule in sorted(counts)
    )


def report_from_json(value: Mapping[str, Any]) -> CleaningReport:
    """Reads a report that was written as JSON by way of `dataclasses.asdict`."""
    rules = tuple(
        RuleReport(**{**rule, "examples": tuple(rule["examples"])}) for rule in value["rules"]
    )
    found = tuple(FoundItem(**each) for each in value["found"])
    return CleaningReport(**{**value, "rules": rules, "found": found})
