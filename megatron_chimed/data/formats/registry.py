"""The list of formats, and detection of a file's format."""

import os
from collections.abc import Sequence

from megatron_chimed.data.formats.alpaca import ALPACA, ALPACA_PREFERENCE
from megatron_chimed.data.formats.chimed import CHIMED
from megatron_chimed.data.formats.choice import CHOICE, CMEXAM, CMMLU, EXAM, MEDQA
from megatron_chimed.data.formats.cmedqa2 import CMEDQA2
from megatron_chimed.data.formats.cmtmedqa import CMTMEDQA
from megatron_chimed.data.formats.dialogue import CHUNYU, MEDDIALOG
from megatron_chimed.data.formats.firefly import FIREFLY, FIREFLY_CHAT
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions, Row
from megatron_chimed.data.formats.huatuo import HUATUO
from megatron_chimed.data.formats.instructions import DOLLY, INPUT_OUTPUT, OPEN_ORCA
from megatron_chimed.data.formats.medical_qa import MEDICAL_O1, PUBMEDQA, TITLE_ASK
from megatron_chimed.data.formats.medmcqa import MEDMCQA, MEDMCQA_FROM_1
from megatron_chimed.data.formats.message_pairs import MESSAGE_PAIRS
from megatron_chimed.data.formats.moss import MOSS
from megatron_chimed.data.formats.pairs import QA, SAFETY_PROMPTS, SHENNONG
from megatron_chimed.data.formats.prompt_completion import PROMPT_COMPLETION
from megatron_chimed.data.formats.ranking import RANKING, ZHONGJING_LABELS
from megatron_chimed.data.formats.reward import REWARD
from megatron_chimed.data.formats.row import key_list
from megatron_chimed.data.formats.sharegpt import SHAREGPT, SHAREGPT_PREFERENCE
from megatron_chimed.data.formats.string_lists import HUATUOGPT, ULTRACHAT
from megatron_chimed.data.formats.text import TEXT
from megatron_chimed.data.formats.transcript import HH_RLHF
from megatron_chimed.data.formats.ziya import ZIYA
from megatron_chimed.errors import ConfigError, DataError

__all__ = [
    "AUTO",
    "FORMATS",
    "Format",
    "JsonRow",
    "ReadOptions",
    "Row",
    "detect_format",
    "find_format",
]

AUTO = "auto"
TEXT_KEY = ReadOptions.text_key

# A row may have the keys of several formats: the more specific format comes first.
FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        MESSAGE_PAIRS,
        SHAREGPT_PREFERENCE,
        SHAREGPT,
        FIREFLY_CHAT,
        RANKING,
        ZHONGJING_LABELS,
        ALPACA_PREFERENCE,
        HH_RLHF,
        REWARD,
        CMTMEDQA,
        ALPACA,
        DOLLY,
        ZIYA,
        HUATUO,
        HUATUOGPT,
        ULTRACHAT,
        MOSS,
        MEDDIALOG,
        CHUNYU,
        CMMLU,
        MEDQA,
        CMEXAM,
        CHOICE,
        EXAM,
        MEDMCQA,
        MEDMCQA_FROM_1,
        PUBMEDQA,
        CHIMED,
        CMEDQA2,
        TITLE_ASK,
        MEDICAL_O1,
        OPEN_ORCA,
        PROMPT_COMPLETION,
        SAFETY_PROMPTS,
        SHENNONG,
        QA,
        INPUT_OUTPUT,
        FIREFLY,
        TEXT,
    )
}


def find_format(name: str) -> Format:
    """A format by name.

    Raises:
        ConfigError: There is no such format.
    """
    if name not in FORMATS:
        raise ConfigError(f"--format {name!r} is none of {AUTO}, {', '.join(FORMATS)}.")
    return FORMATS[name]


def detect_format(rows: Sequence[Row], path: str | os.PathLike, text_key: str = TEXT_KEY) -> Format:
    """The format that recognises most of a file's first rows; the first in a tie.

    A `text_key` other than the default is the user's decision: rows that have it are texts.

    Args:
        rows: At least one.
        path: Of the file, for the message.
        text_key: Key of the text in rows of the format `text`.

    Raises:
        DataError: No format recognises any row.
    """
    assert rows, "a format is detected from rows"
    if text_key != TEXT_KEY and any(isinstance(row, dict) and text_key in row for row in rows):
        return TEXT
    counts = {name: sum(map(entry.fits, rows)) for name, entry in FORMATS.items()}
    best = max(counts, key=lambda name: counts[name])
    if counts[best] == 0:
        keys = key_list(rows[0]) if isinstance(rows[0], dict) else "none"
        raise DataError(
            f"{path}: no format fits its rows, whose keys are {keys}. For plain texts, pass their "
            "key with --text-key. For questions and answers, rename the keys to those of a format "
            "in docs/formats.md, such as 'question' and 'answer'."
        )
    return FORMATS[best]
