"""Consultations written down utterance by utterance: MedDialog, and Chunyu's lines.

Utterances of one speaker in a row are joined by newlines. A conversation starts with the first
words of the patient and ends with the last ones of the doctor; what lies outside is left out, since
nobody asked for it or nobody answered it.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.formats.format import Format, ReadOptions, Row
from megatron_chimed.data.formats.row import RowError, checked_text, conversation_of, list_at

IS_PATIENT = {0: True, 1: False, "病人": True, "医生": False, "patient": True, "doctor": False}
CHUNYU_START = "id\t"


def _join(row: Row, utterances: Iterable[tuple[bool, str]]) -> Conversation:
    parts = [
        (is_patient, "\n".join(text for _, text in group))
        for is_patient, group in itertools.groupby(utterances, key=lambda entry: entry[0])
    ]
    if parts and not parts[0][0]:
        parts = parts[1:]
    texts = [text for _, text in parts]
    if len(texts) < 2:
        raise RowError("no patient's words followed by a doctor's: no answer")
    pairs = zip(texts[0::2], texts[1::2], strict=False)
    return conversation_of(row, (Turn(*pair) for pair in pairs))


def _speaker(name: Any) -> bool:
    if isinstance(name, list | dict) or name not in IS_PATIENT:
        raise RowError(f"unknown speaker {name!r}")
    return IS_PATIENT[name]


def _recognise_meddialog(row: Row) -> bool:
    if not isinstance(row, dict):
        return False
    return isinstance(row.get("dialogue_turns"), list | dict) or (
        isinstance(row.get("utterances"), list) and bool(row["utterances"])
    )


def _read_meddialog(row: Row, options: ReadOptions) -> Sequence[Conversation]:
    if "dialogue_turns" not in row:
        texts = [checked_text(text, "utterances") for text in list_at(row, "utterances")]
        return (_join(row, map(_labelled, texts)),)
    turns = row["dialogue_turns"]
    if isinstance(turns, dict):  # a table of the datasets library: one list per column
        speakers, texts = list_at(turns, "speaker"), list_at(turns, "utterance")
    elif isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
        speakers = [turn.get("speaker") for turn in turns]
        texts = [turn.get("utterance") for turn in turns]
    else:
        raise RowError("'dialogue_turns' holds no {speaker, utterance}")
    if len(speakers) != len(texts):
        raise RowError(f"{len(speakers)} speakers for {len(texts)} utterances")
    utterances = (
        (_speaker(name), checked_text(text, "utterance"))
        for name, text in zip(speakers, texts, strict=True)
    )
    return (_join(row, utterances),)


def _labelled(utterance: str) -> tuple[bool, str]:
    """An utterance of the processed sets, which starts with its speaker and a colon."""
    name, colon, text = utterance.replace("：", ":", 1).partition(":")
    if not colon or name not in IS_PATIENT:
        raise RowError(f"an utterance does not start with its speaker: {utterance[:20]!r}")
    return IS_PATIENT[name], text.strip()


def _recognise_chunyu(row: Row) -> bool:
    return isinstance(row, str) and row.startswith(CHUNYU_START)


def _read_chunyu(row: Row, options: ReadOptions) -> Sequence[Conversation]:
    if not _recognise_chunyu(row):
        raise RowError("no dialogue: lines that start with id, P or D and a tab were expected")
    utterances = []
    for line in row.split("\n")[1:]:
        name, tab, text = line.removesuffix("\r").partition("\t")
        if name in ("P", "D") and tab:
            utterances.append((name == "P", text))
        elif line.strip():
            raise RowError(f"a line starts with none of id, P, D and a tab: {line[:20]!r}")
    return (_join(row, utterances),)


MEDDIALOG = Format(
    name="meddialog",
    recognise=_recognise_meddialog,
    read=_read_meddialog,
    sample={
        "dialogue_id": 2,
        "dialogue_turns": [
            {"speaker": "病人", "utterance": "孩子咳嗽一周了。"},
            {"speaker": "医生", "utterance": "有没有发热？"},
            {"speaker": "病人", "utterance": "没有。"},
            {"speaker": "医生", "utterance": "建议先雾化观察。"},
        ],
    },
)

CHUNYU = Format(
    name="chunyu",
    recognise=_recognise_chunyu,
    read=_read_chunyu,
    takes_text=True,
    sample="id\t1024\nP\t嗓子疼两天了。\nP\t还有点咳嗽。\nD\t发烧吗？\nP\t不发烧。\nD\t多喝水，注意休息。",
)
