"""Several ranked answers to one prompt: our own rows, and the labels of Zhongjing's tools.

The label files (https://github.com/SupritYoung/Zhongjing, src/rlhf_label) are tables with the
columns id, query, history, rank1, rank2, ... with the best answer first. Its `list_rank.py` writes
them in the wrong order whenever a ranking is not its own inverse, and keeps nothing from which the
right order could be recovered: such files must be made again from the answers.
"""

import ast
import re
from collections.abc import Sequence
from typing import Any

from megatron_chimed.data.formats.example import Ranking
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.row import (
    RowError,
    checked_text,
    has_texts,
    list_at,
    ranking_of,
    text_at,
)

RANK_COLUMN = re.compile(r"rank ?(\d+)")


def _recognise(row: JsonRow) -> bool:
    if not has_texts(row, "prompt"):
        return False
    return isinstance(row.get("responses"), list) and isinstance(row.get("ranks"), list)


def _read(row: JsonRow, options: ReadOptions) -> Sequence[Ranking]:
    answers = [checked_text(answer, "responses") for answer in list_at(row, "responses")]
    ranks = list_at(row, "ranks")
    if len(ranks) != len(answers) or not all(type(rank) is int for rank in ranks):
        raise RowError(f"'ranks' must hold {len(answers)} integers, one per response")
    margins = _margins(row, len(answers))
    return (ranking_of(row, text_at(row, "prompt"), answers, ranks, margins=margins),)


def _margins(row: JsonRow, count: int) -> tuple[float, ...] | None:
    if row.get("margins") is None:
        return None
    margins = list_at(row, "margins")
    if len(margins) != count or not all(type(margin) in (int, float) for margin in margins):
        raise RowError(f"'margins' must hold {count} numbers, one per response")
    return tuple(map(float, margins))


def _recognise_labels(row: JsonRow) -> bool:
    return has_texts(row, "query", "rank1", "rank2") and "history" in row


def _read_labels(row: JsonRow, options: ReadOptions) -> Sequence[Ranking]:
    columns = sorted(
        (int(match[1]), key) for key in row if (match := RANK_COLUMN.fullmatch(key)) is not None
    )
    answers = [text_at(row, key) for _, key in columns]
    query = text_at(row, "query")
    row = {**row, "history": _literal(row.get("history"))}
    return (ranking_of(row, query, answers, range(len(answers))),)


def _literal(value: Any) -> Any:
    """A table holds the history as a printed Python list."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value) if value.strip() else []
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise RowError("'history' is not a list of [question, answer]") from None


RANKING = Format(
    name="ranking",
    recognise=_recognise,
    read=_read,
    keys=frozenset({"prompt", "responses", "ranks", "margins"}),
    sample={
        "prompt": "糖尿病人可以吃西瓜吗？",
        "responses": ["可以少量吃，注意监测血糖。", "可以随便吃。", "绝对不能吃。"],
        "ranks": [0, 2, 1],
    },
)

ZHONGJING_LABELS = Format(
    name="zhongjing_labels",
    recognise=_recognise_labels,
    read=_read_labels,
    keys=frozenset({"query"} | {f"rank{gap}{n}" for gap in ("", " ") for n in range(100)}),
    sample={
        "id": "0",
        "query": "多久能好？",
        "history": "[['我感冒了', '多休息，多喝水。']]",
        "rank1": "一般一周左右。",
        "rank2": "很快。",
        "rank3": "不知道。",
        "rank4": "别问我。",
    },
)
