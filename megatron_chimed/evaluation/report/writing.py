"""Writes the files of a report."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from megatron_chimed.evaluation.config import EvaluationConfig, ModelEntry, public_settings
from megatron_chimed.evaluation.judging.results import JudgementResult, judgements_markdown
from megatron_chimed.evaluation.report.judgements import judgements_html
from megatron_chimed.evaluation.report.page import render_page
from megatron_chimed.evaluation.results import Items, MeasureResult, markdown
from megatron_chimed.files import write_json, write_text

RESULTS_JSON = "evaluation.json"
REPORT_TEXT = "report.md"
REPORT_PAGE = "report.html"


def write_report(
    config: EvaluationConfig,
    results: Sequence[MeasureResult],
    items: Items,
    judgements: Sequence[JudgementResult] = (),
) -> None:
    """Writes `evaluation.json`, `report.md` and `report.html` into the output folder."""
    folder = Path(config.output_dir)
    content = {
        "models": [public_settings(entry) for entry in config.models],
        "measures": [dataclasses.asdict(result) for result in results],
        "judges": [public_settings(judge) for judge in config.judges],
        "judgements": [dataclasses.asdict(result) for result in judgements],
    }
    write_json(folder / RESULTS_JSON, content)
    write_text(folder / REPORT_TEXT, markdown(results) + judgements_markdown(judgements))
    sources = {entry.name: _source(entry) for entry in config.models}
    write_text(
        folder / REPORT_PAGE, render_page(results, items, sources, judgements_html(judgements))
    )


def _source(entry: ModelEntry) -> str:
    return entry.checkpoint or entry.folder or f"{entry.model} at {entry.endpoint}"
