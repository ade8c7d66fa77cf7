"""Shared by all formats: row errors, strict JSON, checked access to keys, and building examples."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from megatron_chimed.data.extension import extension
from megatron_chimed.data.formats.example import Conversation, Ranking, Turn
from megatron_chimed.errors import DataError

LONG_TEXT_BYTES = 1 << 20  # longer texts, as written, are decoded separately from their row
SYSTEM_KEYS = ("system", "system_prompt", "system_message", "sys_prompt")
# Names of speakers at the start of a line, in the two roles; other uses of them are no turns.
ASKER = re.compile(
    r"^\s*(?:(?:Human|User|HUMAN|USER|用户) ?[:：]|### ?(?:Instruction|Human)|<\|im_start\|>user"
    r"|<\|user\|>|\[INST\])",
    re.MULTILINE,
)
ANSWERER = re.compile(
    r"^\s*(?:(?:Assistant|ASSISTANT|助手|AI) ?[:：]|### ?(?:Response|Assistant)|"
    r"<\|im_start\|>assistant|<\|assistant\|>|.*\[/INST\])",
    re.MULTILINE,
)
ANSWER_MARKS = ("ssistant", "SSISTANT", "助手", "AI:", "AI：", "Response", "/INST]")
COMPARED = "comparing answers learns all of each: remove it, or write the good answers for SFT"
NOTHING = (None, "", "[]", [], {})


class RowError(DataError):
    """One row of an input file is malformed; the reader adds file, line and byte offset."""


def parse_json(raw: bytes | memoryview) -> Any:
    """Parses JSON strictly: what parsers usually let through is refused.

    Integers beyond 64 bits become floats.

    Raises:
        RowError: The text is not UTF-8, malformed or nested too deeply, or holds a number beyond
            the range of a float, a repeated key, NaN, infinity, a lone surrogate or a NUL.
    """
    try:
        value = _loads(raw)
    except orjson.JSONDecodeError as error:
        raise _explained(bytes(raw), error) from None
    except RecursionError:
        raise RowError("JSON nested too deeply") from None
    problem = extension().json_problem(raw)
    if problem is not None:
        raise RowError(problem)
    return value


def _loads(raw: bytes | memoryview) -> Any:
    """`orjson.loads`, without its copy of the whole input if that is large."""
    if len(raw) < LONG_TEXT_BYTES:
        return orjson.loads(raw)
    short, texts = extension().split_long_texts(raw, LONG_TEXT_BYTES)
    return _put_back(orjson.loads(short), texts)


def _put_back(value: Any, texts: dict[str, str]) -> Any:
    """The value with its long texts in place of their placeholders."""
    if isinstance(value, str):
        return texts.get(value, value)
    if isinstance(value, list):
        return [_put_back(item, texts) for item in value]
    if isinstance(value, dict):
        return {_put_back(key, texts): _put_back(item, texts) for key, item in value.items()}
    return value


def decode(raw: bytes) -> str:
    """Decodes UTF-8.

    Raises:
        RowError: The bytes are not UTF-8.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError(
            f"invalid UTF-8: byte 0x{raw[error.start]:02X} at byte {error.start} of the row"
        ) from None


def _explained(raw: bytes, error: orjson.JSONDecodeError) -> RowError:
    """Explains why a value was refused, with the parser of the standard library."""
    try:
        text = json.dumps(json.loads(decode(raw), parse_constant=_refuse_constant))
    except RecursionError:
        return RowError("JSON nested too deeply")
    except RowError as reason:
        return reason
    except ValueError as reason:
        return RowError(f"malformed JSON: {reason}")
    if "\\ud" in text and "surrogate" in str(error):
        return RowError("lone surrogate in the text")
    return RowError(f"malformed JSON: {error}")


def _refuse_constant(name: str) -> Any:
    raise RowError(f"{name} is not a JSON number")


def has_texts(row: dict[str, Any], *keys: str) -> bool:
    """Whether there is a text under each of the keys."""
    return all(isinstance(row.get(key), str) for key in keys)


def text_at(row: dict[str, Any], key: str) -> str:
    """The text under a key.

    Raises:
        RowError: The key is missing or its value is not a text.
    """
    if key not in row:
        raise RowError(f"no key {key!r} (keys: {key_list(row)})")
    return checked_text(row[key], key)


def optional_text(row: dict[str, Any], key: str) -> str:
    """The text under a key; "" if the key is missing or its value is null.

    Raises:
        RowError: The value is neither a text nor null.
    """
    value = row.get(key)
    return "" if value is None else checked_text(value, key)


def checked_text(value: Any, name: str) -> str:
    """Returns the value if it is a text.

    Raises:
        RowError: The value is not a text.
    """
    if not isinstance(value, str):
        raise RowError(f"{name!r} is of type {type(value).__name__}, not a text")
    return value


def list_at(row: dict[str, Any], key: str) -> list[Any]:
    """The list under a key.

    Raises:
        RowError: The key is missing or its value is not a list.
    """
    if key not in row:
        raise RowError(f"no key {key!r} (keys: {key_list(row)})")
    if not isinstance(row[key], list):
        raise RowError(f"{key!r} is of type {type(row[key]).__name__}, not a list")
    return row[key]


def key_list(row: dict[str, Any]) -> str:
    """The first keys of a row, for messages."""
    return ", ".join(map(repr, list(row)[:8])) or "none"


def history_turns(row: dict[str, Any]) -> list[Turn]:
    """The earlier turns of a row: `history`, a list of [question, answer].

    A table has no lists: its history is such a list as JSON text, or an empty field.

    Raises:
        RowError: The history has another shape.
    """
    history = row.get("history")
    if isinstance(history, str):
        history = _listed(history)
    if history is None:
        return []
    if not isinstance(history, list):
        raise RowError(f"'history' is of type {type(history).__name__}, not a list")
    turns = []
    for place, pair in enumerate(history, start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(f"history entry {place} is not [question, answer]")
        question, answer = (checked_text(side, f"history entry {place}") for side in pair)
        turns.append(Turn(question, answer))
    return turns


def _listed(text: str) -> Any:
    if not text.strip():
        return None
    try:
        return parse_json(text.encode())
    except RowError:
        raise RowError(
            f"'history' is a text but not a JSON list of [question, answer]: {text[:20]!r}"
        ) from None


def refuse_keys(row: dict[str, Any], keys: Sequence[str], why: str) -> None:
    """Refuses a row whose value under one of the keys would be lost.

    Raises:
        RowError: A value under one of the keys is neither null nor empty.
    """
    for key in keys:
        if row.get(key) not in NOTHING:
            raise RowError(f"{key!r} {why}")


def conversation_of(row: dict[str, Any], turns: Iterable[Turn], system: str = "") -> Conversation:
    """A training conversation, preceded by the `history` and `system` of its row.

    Args:
        row: The row that the turns come from.
        turns: The turns that the format found.
        system: A system prompt that the format found elsewhere than under `system`.

    Raises:
        RowError: As for `conversation`; two system prompts; keys that cannot be used.
    """
    history, system = context_of(row, system)
    return conversation([*history, *turns], system)


def ranking_of(
    row: dict[str, Any],
    question: str,
    candidates: Sequence[str],
    ranks: Sequence[int],
    *,
    turns: Sequence[Turn] = (),
    system: str = "",
    margins: tuple[float, ...] | None = None,
) -> Ranking:
    """Ranked answers to a question, preceded by the `history` and `system` of its row.

    Args:
        row: The row that all this comes from.
        question: As for `ranking`.
        candidates: As for `ranking`.
        ranks: As for `ranking`.
        turns: Earlier turns that the format found, after `history`.
        system: A system prompt that the format found elsewhere than under `system`.
        margins: As for `ranking`.

    Raises:
        RowError: As for `ranking`; two system prompts; keys that cannot be used.
    """
    history, system = context_of(row, system)
    earlier = [*history, *turns]
    return ranking(question, candidates, ranks, history=earlier, system=system, margins=margins)


def context_of(row: dict[str, Any], system: str) -> tuple[list[Turn], str]:
    """The turns of a row's `history` and its system prompt: `system`, or the one found elsewhere.

    Raises:
        RowError: They have another shape; two system prompts; keys that cannot be used.
    """
    for key in SYSTEM_KEYS:
        if key not in row:
            continue
        own = optional_text(row, key)
        if system and own and system != own:
            raise RowError(f"two system prompts: under {key!r} and as the first message")
        system = system or own
    return history_turns(row), system


def refuse_transcript(question: str, answer: str, where: str = "") -> None:
    """Refuses texts that hold turns of their own, as `Human:` and `Assistant:`.

    Raises:
        RowError: A text has both markers, or question and answer start with them.
    """
    for text in (question, answer):
        # Two markers at starts of lines need two lines. This check alone takes 0.1 us.
        if ("\n" in text or "[/INST]" in text) and _is_transcript(text):
            raise RowError(
                f"a text{where} holds turns of its own, such as {_marker(text)!r}: write them as "
                "messages"
            )
    if ASKER.match(question) and ANSWERER.match(answer):
        raise RowError(f"question and answer{where} start with names of speakers: remove them")


def _is_transcript(text: str) -> bool:
    for mark in ANSWER_MARKS:  # faster than a pattern or `any`
        if mark in text:
            break
    else:
        return False
    return ASKER.search(text) is not None and ANSWERER.search(text) is not None


def _marker(text: str) -> str:
    match = ANSWERER.search(text)
    return "" if match is None else match[0].strip()


def conversation(turns: Iterable[Turn], system: str = "") -> Conversation:
    """A training conversation.

    Raises:
        RowError: There is no turn, or a turn lacks a question or an answer.
    """
    turns = tuple(turns)
    if not turns:
        raise RowError("the conversation has no turn")
    is_learned = False
    for place, turn in enumerate(turns, start=1):
        is_learned = is_learned or turn.is_learned
        where = f" in turn {place}" if len(turns) > 1 else ""
        if not turn.question.strip():
            raise RowError(f"no question{where}")
        if not turn.answer.strip() and not turn.steps:
            raise RowError(f"no answer{where}")
        refuse_transcript(turn.question, turn.answer, where)
    if not is_learned:
        raise RowError("no answer is learned: all are masked")
    return Conversation(turns, system)


def ranking(
    question: str,
    candidates: Sequence[str],
    ranks: Sequence[int],
    *,
    history: Sequence[Turn] = (),
    system: str = "",
    margins: tuple[float, ...] | None = None,
) -> Ranking:
    """Ranked answers to a question.

    Args:
        question: The last question, which the candidates answer.
        candidates: The answers.
        ranks: One integer per candidate, smaller is better.
        history: Earlier turns.
        system: System prompt.
        margins: One number per candidate, if known.

    Raises:
        RowError: A text is empty, two candidates are equal, or all ranks are.
    """
    # The prompt's last turn is checked with a non-empty answer.
    checked = conversation([*history, Turn(question, candidates[0] if candidates else "")], system)
    if len(candidates) < 2:
        raise RowError("a single answer cannot be ranked")
    stripped = [candidate.strip() for candidate in candidates]
    for place, text in enumerate(stripped):
        if not text:
            raise RowError(f"answer {place + 1} is empty")
        if text in stripped[:place]:
            raise RowError(f"answers {stripped.index(text) + 1} and {place + 1} are equal")
    levels = sorted(set(ranks))
    if len(levels) < 2:
        raise RowError("all answers have the same rank")
    prompt = Conversation((*checked.turns[:-1], Turn(question, "")), system)
    dense = tuple(levels.index(rank) for rank in ranks)
    return Ranking(prompt, tuple(candidates), dense, margins)
