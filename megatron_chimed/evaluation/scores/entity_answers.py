"""Reads named entities from a model's answer: lines such as `类型：实体1，实体2`, or JSON.

A separator inside an entity divides it, as in every evaluation of such answers: 肺，肝 are two.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from megatron_chimed.evaluation.scores.answer_text import Problem, final_text, is_refusal

_SEPARATORS = re.compile(r"[,\uff0c、;\uff1b|\n\t]+")
_BULLET = re.compile(r"^\s*(?:[-*•·●]+|\d+[.、)])\s*")
_QUOTES = " \t\r\n\"'“”‘’「」『』《》【】[]`。."
_NOTHING = re.compile(
    r"(?:无|没有|未提及|未提到|不存在|暂无|none|null|n/a|nil|\[\]|\{\}|-+|空)[。.]?", re.IGNORECASE
)
_NO_ENTITIES = re.compile(
    r"(?:没有|无|未)(?:任何|相关|发现|识别到|提及|检测到|找到)*(?:的)?(?:命名)?实体"
)
_LABEL = re.compile(r"[:\uff1a]|\s[-–—]\s|\t")
_WITH_TYPE = re.compile(r"(?P<text>[^()]+)\((?P<type>[^()]+)\)$")
_JSON_TEXT_KEYS = ("text", "entity", "mention", "name", "word", "span", "value", "实体", "内容")
_JSON_TYPE_KEYS = ("type", "label", "category", "entity_type", "类型", "类别", "实体类型")


class Mention(NamedTuple):
    """An entity as a model names it: no place in the text."""

    type: str
    text: str


@dataclass(frozen=True, kw_only=True)
class ParsedEntities:
    """What an answer names."""

    mentions: tuple[Mention, ...]
    """Each once, in the answer's order."""
    problem: Problem | None
    """Why the answer could not be read; None also for an answer that names no entities."""
    unknown_types: tuple[str, ...] = ()
    """Types of the answer that the task does not have; their entities are left out."""


def parse_entities(answer: str, types: Mapping[str, Sequence[str]]) -> ParsedEntities:
    """The entities that an answer names.

    Args:
        answer: What the model wrote.
        types: Other names by type, such as `{"疾病和诊断": ("疾病", "dis")}`. Width and case of
            names do not matter.
    """
    # Entities keep their width; only what is around them is read in one width.
    text, problem = final_text(answer)
    if problem:
        return ParsedEntities(mentions=(), problem=problem)
    names = {_key(name): type_ for type_, others in types.items() for name in (type_, *others)}
    raw = _answer_part(answer)
    document = _find_json(raw)
    found = list(_from_json(document) if document is not None else _from_lines(raw, names))
    mentions, unknown = [], []
    for name, written in found:
        entity = written.strip(_QUOTES)
        if not entity or _NOTHING.fullmatch(entity):
            continue
        if _key(name) in names:
            mentions.append(Mention(names[_key(name)], entity))
        else:
            unknown.append(name)
    if not found and document is None and not _says_nothing(text):
        problem = "refusal" if is_refusal(text) else "unparsed"
    return ParsedEntities(
        mentions=tuple(dict.fromkeys(mentions)),
        problem=problem,
        unknown_types=tuple(dict.fromkeys(unknown)),
    )


def _answer_part(answer: str) -> str:
    """The answer after its reasoning, as written."""
    part = re.split(r"</think(?:ing)?>|◁/think▷", answer)[-1]
    return re.sub(r"```(?:json)?|\*\*", "", part).strip()


def _says_nothing(text: str) -> bool:
    return bool(_NOTHING.fullmatch(text) or _NO_ENTITIES.search(text))


def _key(name: str) -> str:
    """A type's name in one width and case, without what surrounds it."""
    name = final_text(name)[0]
    return _BULLET.sub("", name).strip(_QUOTES + "()<>").casefold()


def _find_json(text: str) -> Any:
    """The first JSON object or array in a text; None without one."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"[{\[]", text):
        part = text[match.start() :]
        for written in (part, part.replace("'", '"')):
            try:
                document, _ = decoder.raw_decode(written)
            except (json.JSONDecodeError, RecursionError):
                continue
            if isinstance(document, dict) or any(isinstance(one, (dict, list)) for one in document):
                return document
            if not document and text[: match.start()].strip() == "":
                return document
    return None


def _from_json(document: Any) -> Iterator[tuple[str, str]]:
    """Type and text of the entities of a JSON value, in the shapes that models choose."""
    if isinstance(document, dict):
        text = next((document[key] for key in _JSON_TEXT_KEYS if key in document), None)
        type_ = next((document[key] for key in _JSON_TYPE_KEYS if key in document), None)
        if isinstance(text, str) and isinstance(type_, str):
            yield type_, text
            return
        for key, value in document.items():
            yield from _of_type(key, value)
    elif isinstance(document, list):
        for one in document:
            if isinstance(one, list) and len(one) == 2 and all(isinstance(x, str) for x in one):
                yield one[0], one[1]
            elif isinstance(one, (dict, list)):
                yield from _from_json(one)


def _of_type(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield from ((key, one) for one in _SEPARATORS.split(value))
    elif isinstance(value, list) and all(isinstance(one, str) for one in value):
        yield from ((key, one) for one in value)
    elif isinstance(value, list):
        for one in value:
            if isinstance(one, dict) and not any(name in one for name in _JSON_TYPE_KEYS):
                texts = (one[name] for name in _JSON_TEXT_KEYS if isinstance(one.get(name), str))
                yield from ((key, text) for text in texts)
            else:
                yield from _from_json([one])
    elif isinstance(value, dict):
        yield from _from_json(value)


def _from_lines(text: str, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Type and text of the entities of lines; a line without a type belongs to the one before."""
    current: str | None = None
    for line in (_BULLET.sub("", one).strip() for one in text.split("\n")):
        if not line:
            continue
        label = _LABEL.search(line)
        if label is None:
            if current is not None and _key(line) not in names:
                yield from ((current, one) for one in _SEPARATORS.split(line))
            elif match := _WITH_TYPE.match(_narrow_brackets(line)):
                yield match["type"], match["text"]
            elif _key(line) in names:
                current = line
            continue
        left, right = line[: label.start()], line[label.end() :]
        if _key(left) not in names and _key(right) in names:
            yield right, left
            continue
        is_list = _key(left) in names or len(left) <= 12
        current = left if _key(left) in names else None
        if is_list:
            yield from ((left, one) for one in _SEPARATORS.split(right) if one.strip(_QUOTES))
            if not right.strip(_QUOTES) and current is not None:
                yield current, ""  # a heading: the entities follow in lines of their own


def _narrow_brackets(text: str) -> str:
    return text.replace("\uff08", "(").replace("\uff09", ")")
