"""Texts with named entities from rows of CCKS-2019, CMeEE, and plain ones.

CCKS: `originalText`, `entities` of `start_pos`, `end_pos` (exclusive) and `label_type`. CMeEE:
`text`, `entities` of `start_idx`, `end_idx` (inclusive) and `type`. Plain: `text`, and `entities`
of `type` and `text`, which stand for every place where that text occurs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_chimed.data.formats.row import RowError, key_list
from megatron_chimed.errors import DataError
from megatron_chimed.evaluation.scores.entities import (
    AnnotatedText,
    EntitySpan,
    annotated_text,
    check_texts,
    locate,
)
from megatron_chimed.evaluation.scores.entity_answers import Mention
from megatron_chimed.evaluation.tasks.task_rows import read_task_rows

TEXT_KEYS = ("originalText", "text", "sentence", "content")
TYPE_KEYS = ("label_type", "type", "label", "entity_type")
NAME_KEYS = ("entity_name", "entity", "text", "mention", "name")
STARTS = ("start_pos", "start_idx", "start", "start_offset")
EXCLUSIVE_ENDS = ("end_pos", "end", "end_offset")
INCLUSIVE_ENDS = ("end_idx",)


@dataclass(frozen=True, kw_only=True)
class EntityItem:
    """A row of a test file."""

    id: str
    """File and line."""
    group: str
    """The file's name."""
    document: AnnotatedText | None
    """None: the row cannot be used."""
    problem: str | None = None
    """Why it cannot."""


def read_entity_items(
    names: Sequence[str], types: Mapping[str, Sequence[str]], inclusive_end: bool | None
) -> list[EntityItem]:
    """Reads annotated texts in the order of files and lines; a bad row becomes a problem.

    Args:
        names: Files, folders and patterns.
        types: Other names by type; other types than these make a row bad. Empty: any type.
        inclusive_end: Whether ends are the last character; None: as their key says.

    Raises:
        ConfigError: A name matches no file.
        DataError: A file is damaged, or no row can be used.
    """
    canonical = {name: type_ for type_, others in types.items() for name in (type_, *others)}
    items = []
    for place in read_task_rows(names):
        try:
            if isinstance(place.row, RowError):
                raise place.row
            document = _document(place.row, canonical, inclusive_end)
        except DataError as error:  # RowError is one
            reason = str(error)
            items.append(EntityItem(id=place.id, group=place.stem, document=None, problem=reason))
            continue
        items.append(EntityItem(id=place.id, group=place.stem, document=document))
    if not any(item.document for item in items):
        reasons = [item.problem for item in items if item.problem] or ["there are no rows"]
        raise DataError(
            f"{', '.join(names)}: no row can be used: {reasons[0]}. Rows need a text and entities."
        )
    return items


def _document(
    row: dict[str, Any], canonical: Mapping[str, str], inclusive_end: bool | None
) -> AnnotatedText:
    """The text of a row with its entities.

    Raises:
        DataError: A key is missing, or an entity does not fit the text.
    """
    text = next((row[key] for key in TEXT_KEYS if isinstance(row.get(key), str)), None)
    entities = row.get("entities")
    if text is None or not isinstance(entities, list):
        raise RowError(f"no text with a list of 'entities' (keys: {key_list(row)})")
    spans: list[EntitySpan] = []
    for entity in entities:
        if not isinstance(entity, dict):
            raise RowError("an entity is no object")
        type_ = _type(entity, canonical)
        name = next((entity[key] for key in NAME_KEYS if isinstance(entity.get(key), str)), None)
        start = next((entity[key] for key in STARTS if type(entity.get(key)) is int), None)
        if start is None:
            spans += _places(text, type_, name)
            continue
        document = annotated_text(
            text,
            [(type_, start, _end(entity, inclusive_end))],
            inclusive_end=False,
            where="an entity",
        )
        if name is not None:
            check_texts(document, [name], "an entity")
        spans += document.spans
    return AnnotatedText(text=text, spans=tuple(dict.fromkeys(spans)))


def _type(entity: dict[str, Any], canonical: Mapping[str, str]) -> str:
    found = next((entity[key] for key in TYPE_KEYS if isinstance(entity.get(key), str)), None)
    if not found:
        raise RowError(f"an entity has no type (keys: {key_list(entity)})")
    if canonical and found not in canonical:
        raise RowError(f"an entity of type {found!r}, which the task does not list")
    return canonical.get(found, found)


def _end(entity: dict[str, Any], inclusive_end: bool | None) -> int:
    """The character after the last one."""
    for keys, is_inclusive in ((EXCLUSIVE_ENDS, False), (INCLUSIVE_ENDS, True)):
        for key in keys:
            if type(entity.get(key)) is int:
                return entity[key] + (is_inclusive if inclusive_end is None else inclusive_end)
    raise RowError(f"an entity has a start but no end (keys: {key_list(entity)})")


def _places(text: str, type_: str, name: str | None) -> list[EntitySpan]:
    if not name:
        raise RowError("an entity has neither a place nor a text")
    places = locate(text, [Mention(type_, name)])
    if not places:
        raise RowError(f"entity {name!r} is not in the text")
    return places
