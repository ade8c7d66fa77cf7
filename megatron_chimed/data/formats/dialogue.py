"""Consultations recorded utterance by utterance: MedDialog, and Chunyu's lines.

Consecutive utterances of one speaker are joined by newlines. A conversation starts with the first
utterance of the patient and ends with the last one of the doctor; what lies outside is dropped,
since it has no question or no answer.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.row import (
    RowError,
    checked_text,
    conversation,
    conversation_of,
    list_at,
)

IS_PATIENT = {0: True, 1: False, "病人": True, "医生": False, "patient": True, "doctor": False}
CHUNYU_START = "id\t"
NO_CHUNYU = "not a dialogue: lines must start with id, P or D and a tab"


def _join(utterances: Iterable[tuple[bool, str]]) -> list[Turn]:
    parts = [
        (is_patient, "\n".join(text for _, text in group))
        for is_patient, group in itertools.groupby(utterances, key=lambda entry: entry[0])
    ]
    if parts and not parts[0][0]:
        parts = parts[1:]
    texts = [text for _, text in parts]
    if len(texts) < 2:
        raise RowError("no utterance of the patient is followed by one of the doctor: no answer")
    pairs = zip(texts[0::2], texts[1::2], strict=False)
    return [Turn(*pair) for pair in pairs]


def _speaker(name: Any) -> bool:
    if isinstance(name, list | dict) or name not in IS_PATIENT:
        raise RowError(f"unknown speaker {name!r}")
    return IS_PATIENT[name]


def _recognise_meddialog(row: JsonRow) -> bool:
    return isinstance(row.get("dialogue_turns"), list | dict) or (
        isinstance(row.get("utterances"), list) and bool(row["utterances"])
    )


def _read_meddialog(row: JsonRow, options: ReadOptions) -> Sequence[Conversation]:
    if "dialogue_turns" not in row:
        texts = [checked_text(text, "utterances") for text in list_at(row, "utterances")]
        return (conversation_of(row, _join(map(_labelled, texts))),)
    turns = row["dialogue_turns"]
    if isinstance(turns, dict):  # a table of the datasets library: one list per column
        speakers, texts = list_at(turns, "speaker"), list_at(turns, "utterance")
    elif isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
        speakers = [turn.get("speaker") for turn in turns]
        texts = [turn.get("utterance") for turn in turns]
    else:
        raise RowError("'dialogue_turns' is not a list of {speaker, utterance}")
    if len(speakers) != len(texts):
        raise RowError(f"{len(speakers)} speakers for {len(texts)} utterances")
    utterances = (
        (_speaker(name), checked_text(text, "utterance"))
        for name, text in zip(speakers, texts, strict=True)
    )
    return (conversation_of(row, _join(utterances)),)


def _labelled(utterance: str) -> tuple[bool, str]:
    """An utterance of the processed sets, prefixed with its speaker and a colon."""
    name, colon, text = utterance.replace("：", ":", 1).partition(":")
    if not colon or name not in IS_PATIENT:
        raise RowError(f"an utterance does not start with its speaker: {utterance[:20]!r}")
    return IS_PATIENT[name], text.strip()


def _recognise_chunyu(text: str) -> bool:
    return text.startswith(CHUNYU_START)


def _refuse_chunyu_object(row: JsonRow, options: ReadOptions) -> Sequence[Conversation]:
    raise RowError(NO_CHUNYU)


def _read_chunyu(text: str) -> Sequence[Conversation]:
    if not _recognise_chunyu(text):
        raise RowError(NO_CHUNYU)
    utterances = []
    for line in text.split("\n")[1:]:
        name, tab, words = line.removesuffix("\r").partition("\t")
        if name in ("P", "D") and tab:
            utterances.append((name == "P", words))
        elif line.strip():
            raise RowError(f"a line does not start with id, P or D and a tab: {line[:20]!r}")
    return (conversation(_join(utterances)),)


MEDDIALOG = Format(
    name="meddialog",
    recognise=_recognise_meddialog,
    read=_read_meddialog,
    keys=frozenset({"dialogue_turns", "utterances", "description"}),
    one_of=(("dialogue_turns", "utterances"),),
    message_lists=("dialogue_turns",),
    message_keys=frozenset({"speaker", "utterance"}),
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
    recognise=lambda row: False,
    read=_refuse_chunyu_object,
    keys=frozenset(),
    recognise_text=_recognise_chunyu,
    read_text=_read_chunyu,
    sample="id\t1024\nP\t嗓子疼两天了。\nP\t还有点咳嗽。\nD\t发烧吗？\nP\t不发烧。\nD\t多喝水，注意休息。",
)
