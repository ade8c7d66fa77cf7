"""What a preprocessing run did, as lines for the user."""

import dataclasses
from collections import Counter
from typing import Any

from megatron_chimed.data.datasets.sidecar import Sidecar
from megatron_chimed.data.preprocessing.plan import PreprocessConfig
from megatron_chimed.data.preprocessing.writer import SUFFIXES

SHOWN_MATCHES = 3  # per test file


def summarize(config: PreprocessConfig, sidecar: Sidecar, seconds: float) -> str:
    """A summary of what was written and what was not."""
    sources = sidecar.sources
    megabytes = sum(source.bytes for source in sources) / 1e6
    total = Counter()
    removed, changed = Counter(), Counter()
    for source in sources:
        values = dataclasses.asdict(source)
        total.update({name: value for name, value in values.items() if isinstance(value, int)})
        removed.update(source.removed)
        changed.update(source.changed)
    lines = [
        f"{sidecar.documents:,} documents, {sidecar.tokens:,} tokens from {megabytes:,.2f} MB in "
        f"{seconds:.1f} s ({megabytes / seconds:.1f} MB/s, {sidecar.tokens / seconds:,.0f} "
        "tokens/s)",
        f"{total['rows']:,} rows: {total['quarantined']:,} malformed; {total['examples']:,} "
        f"examples: {total['empty']:,} empty{_rules(removed, ' removed')}; {sidecar.documents:,} "
        "documents",
    ]
    if config.stage != "pretrain":
        lines.append(
            f"{sidecar.supervised_tokens:,} tokens are learned, {sidecar.end_tokens:,} of them "
            f"ends of answers; {total['truncated']:,} documents were shortened, "
            f"{total['dropped_turns']:,} turns left out"
        )
    elif total["empty"] and not config.keep_blank_texts:
        lines.append(
            f"{total['empty']:,} texts that are empty or white space alone were left out; "
            "--keep-blank-texts keeps white space, as Megatron-LM does"
        )
    lines += [
        f"{source.file}: key {key['name']!r} of {key['rows']:,} rows is not read, such as "
        f"{key['example']}"
        for source in sources
        for key in source.unread_keys
    ]
    if changed:
        lines.append(f"cleaning:{_rules(changed, '').removeprefix(',')}")
    for item in sidecar.cleaning.get("decontamination", ()):
        lines += _overlap(item)
    suffixes = [suffix for suffix in SUFFIXES[config.stage][1:] if suffix != ".meta.json"]
    lines.append(
        f"wrote {config.output_prefix}{', '.join(suffixes)} and .meta.json ({sidecar.dtype} ids)"
    )
    if total["quarantined"]:
        lines.append(f"the malformed rows are listed in {config.output_prefix}.quarantine.jsonl")
    return "\n".join(lines)


def _overlap(item: dict[str, Any]) -> list[str]:
    """What a sidecar says of one test file, with the questions that were found best."""
    removed = f", {item['removed']:,} of them only in removed examples" if item["removed"] else ""
    lines = [
        f"{item['found']:,} of {item['items']:,} questions of {item['file']} "
        f"{'were' if removed else 'are'} in the data{removed}; {item['too_short']:,} are too short "
        "to look for"
    ]
    best = sorted(item["matches"], key=lambda match: -match["score"])[:SHOWN_MATCHES]
    lines += [
        f"  line {match['line']}: {match['question']} ({match['score']:.0%} of it in "
        f"{match['kept'] + match['removed']:,} examples, {match['removed']:,} of them removed)"
        for match in best
    ]
    if len(item["matches"]) > len(best):
        lines.append(f"  ... the sidecar lists the first {len(item['matches']):,}")
    return lines


def _rules(counts: Counter[str], what: str) -> str:
    return "".join(f", {count:,} {rule}{what}" for rule, count in sorted(counts.items()))
