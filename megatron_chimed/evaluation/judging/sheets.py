"""Sheets for people: the same calls as for models, blind, with empty columns for verdicts."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from megatron_chimed.errors import DataError
from megatron_chimed.evaluation.judging.calls import NO_VERDICT, JudgeCall, Judged
from megatron_chimed.files import write_text

ID = "id"


def write_sheet(path: Path, calls: Sequence[JudgeCall]) -> None:
    """Writes a tab-separated sheet, in the order of ids, which tells nothing."""
    rows = sorted(calls, key=lambda call: call.blind_id)
    columns = [ID, *rows[0].shown, *rows[0].fields] if rows else [ID]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", delimiter="\t", lineterminator="\n")
    writer.writeheader()
    for call in rows:
        writer.writerow({ID: call.blind_id, **call.shown})
    write_text(path, text.getvalue())


def read_sheet(path: Path, calls: Sequence[JudgeCall]) -> list[Judged]:
    """The verdicts of a sheet; a call without one, or without a row, has none.

    Raises:
        DataError: The file is no table in UTF-8, a column is missing, an id is of other answers or
            there twice, or a verdict is none that can be given.
    """
    try:
        found = _rows(path, calls)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is no tab-separated table in UTF-8 ({error}). Save it in that form."
        ) from None
    return [_judged(call, found.get(call.blind_id, {})) for call in calls]


def _rows(path: Path, calls: Sequence[JudgeCall]) -> dict[str, dict[str, str]]:
    """What is written in a sheet, by id."""
    by_id = {call.blind_id: call for call in calls}
    found: dict[str, dict[str, str]] = {}
    with open(path, encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t")
        wanted = [ID, *(calls[0].fields if calls else ())]
        if missing := [name for name in wanted if name not in (reader.fieldnames or ())]:
            raise DataError(
                f"{path} has no column {missing[0]!r}. Keep the columns {', '.join(wanted)}, "
                "separated by tabs."
            )
        for row in reader:
            name = (row[ID] or "").strip()
            where = f"{path}:{reader.line_num}"
            if name not in by_id:
                raise DataError(
                    f"{where}: {name!r} is no pair of this evaluation: the sheet is of other "
                    "answers. Move it away: a new one is written."
                )
            if name in found:
                raise DataError(f"{where}: {name} is there twice. Keep one of the rows.")
            found[name] = _verdict(by_id[name], row, where)
    return found


def _verdict(call: JudgeCall, row: dict[str, str | None], where: str) -> dict[str, str]:
    verdict = {name: (row[name] or "").strip().lower() for name in call.fields}
    for name, value in verdict.items():
        if value and value not in call.values:
            raise DataError(
                f"{where}: {name} is {row[name]!r}. Write one of {', '.join(call.values)}, or "
                "nothing."
            )
    return verdict


def _judged(call: JudgeCall, verdict: dict[str, str]) -> Judged:
    if not verdict or not all(verdict.values()):
        return Judged(call=call, verdict=None, problem=NO_VERDICT)
    return Judged(call=call, verdict=verdict)
