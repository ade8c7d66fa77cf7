"""Reports of rounds as files: numbers (JSON), text (Markdown) and pictures."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from megatron_chimed.errors import DataError
from megatron_chimed.files import write_json, write_text
from megatron_chimed.rejection.candidate import Candidate
from megatron_chimed.rejection.report.plots import (
    draw_best_of_n,
    draw_length_reward,
    draw_overview,
    draw_rewards,
)
from megatron_chimed.rejection.report.round_text import round_text
from megatron_chimed.rejection.report.summary import RoundReport, policies
from megatron_chimed.rejection.report.tables import overview_text

NUMBERS, TEXT, OVERVIEW = "report.json", "report.md", "overview.png"


def write_round_report(
    folder: str | os.PathLike,
    report: RoundReport,
    *,
    candidates: Sequence[Candidate],
    before: Sequence[Candidate],
    after: Sequence[Candidate],
) -> None:
    """Writes `report.md`, its pictures and, last, `report.json`; each replaced atomically.

    Args:
        folder: Of the round.
        report: From `report_round`, with the same candidates and answers.
        candidates: All of the round, scored and decided.
        before: Fresh answers before the round.
        after: The same after it.
    """
    folder = Path(folder)
    pictures = []
    if report.change is not None:
        draw_rewards(folder / "rewards.png", before=before, after=after)
        pictures.append("rewards")
    if report.best_of_n:
        draw_best_of_n(folder / "best_of_n.png", report.best_of_n)
        draw_length_reward(folder / "length_reward.png", candidates)
        pictures += ["best_of_n", "length_reward"]
    text = round_text(report, before=before, after=after, pictures=pictures)
    write_text(folder / TEXT, text)
    write_json(folder / NUMBERS, report.plain())


def read_round_report(folder: str | os.PathLike) -> RoundReport:
    """Reads the numbers that `write_round_report` left in a folder.

    Raises:
        DataError: They are missing or damaged.
    """
    path = Path(folder, NUMBERS)
    try:
        return RoundReport.from_plain(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} cannot be read as the report of a round ({type(error).__name__}: {error}). "
            "Remove it, and the round makes it again."
        ) from None


def write_overview(folder: str | os.PathLike, reports: Sequence[RoundReport]) -> None:
    """Writes `report.md` and `overview.png` over all rounds; each replaced atomically.

    Args:
        folder: Of the whole job.
        reports: In the order of the rounds.
    """
    folder = Path(folder)
    if policies(reports):
        draw_overview(folder / OVERVIEW, reports)
    write_text(folder / TEXT, overview_text(reports))
