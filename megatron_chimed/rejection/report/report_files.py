"""Writes and reads the reports of rounds: numbers (JSON), text (Markdown) and plots (PNG)."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from megatron_chimed.errors import DataError
from megatron_chimed.files import write_json, write_text
from megatron_chimed.observe.console import make_console, print_table
from megatron_chimed.rejection.candidate import Candidate
from megatron_chimed.rejection.report.overview_markdown import overview_text
from megatron_chimed.rejection.report.round_markdown import round_text
from megatron_chimed.rejection.report.round_plots import (
    plot_best_of_n,
    plot_length_reward,
    plot_overview,
    plot_rewards,
)
from megatron_chimed.rejection.report.round_report import RoundReport, policies
from megatron_chimed.rejection.report.tables import terminal_table

REPORT_JSON, REPORT_TEXT, OVERVIEW_PLOT = "report.json", "report.md", "overview.png"


def write_round_report(
    folder: str | os.PathLike,
    report: RoundReport,
    *,
    candidates: Sequence[Candidate],
    before: Sequence[Candidate],
    after: Sequence[Candidate],
) -> None:
    """Writes `report.md`, its plots and, last, `report.json`; each replaced atomically.

    Args:
        folder: Of the round.
        report: From `measure_round`, of the same candidates and answers.
        candidates: All candidates of the round, scored and selected.
        before: Fresh answers before the round.
        after: Fresh answers after it.
    """
    folder = Path(folder)
    pictures = []
    if report.change is not None:
        plot_rewards(folder / "rewards.png", before=before, after=after)
        pictures.append("rewards")
    if report.best_of_n:
        plot_best_of_n(folder / "best_of_n.png", report.best_of_n)
        plot_length_reward(folder / "length_reward.png", candidates)
        pictures += ["best_of_n", "length_reward"]
    text = round_text(report, before=before, after=after, pictures=pictures)
    write_text(folder / REPORT_TEXT, text)
    write_json(folder / REPORT_JSON, report.plain())


def read_round_report(folder: str | os.PathLike) -> RoundReport:
    """Reads the numbers that `write_round_report` wrote to a folder.

    Raises:
        DataError: They are missing or damaged.
    """
    path = Path(folder, REPORT_JSON)
    try:
        return RoundReport.from_plain(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} cannot be read as the report of a round ({type(error).__name__}: {error}). "
            "Remove it, and the round writes it again."
        ) from None


def write_overview(folder: str | os.PathLike, reports: Sequence[RoundReport]) -> None:
    """Writes `report.md` and `overview.png` of all rounds; each replaced atomically.

    Args:
        folder: Of the whole job.
        reports: In the order of the rounds.
    """
    folder = Path(folder)
    if policies(reports):
        plot_overview(folder / OVERVIEW_PLOT, reports)
    write_text(folder / REPORT_TEXT, overview_text(reports))


def print_round_report(report: RoundReport) -> None:
    """Prints the answers before and after a round as a table."""
    print_table(terminal_table(report), make_console())
