"""Documents: lines of plain text, or objects with the text under one key."""

from collections.abc import Sequence

from megatron_chimed.data.formats.example import Text
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.row import RowError, checked_text, has_texts, key_list


def _recognise(row: JsonRow) -> bool:
    return has_texts(row, "text")


def _read(row: JsonRow, options: ReadOptions) -> Sequence[Text]:
    key = options.text_key
    if key not in row:
        raise RowError(
            f"no key {key!r} (keys: {key_list(row)}); pass the key of plain texts with --text-key; "
            "for other rows see docs/formats.md"
        )
    return (Text(checked_text(row[key], key)),)


TEXT = Format(
    name="text",
    recognise=_recognise,
    read=_read,
    keys=frozenset(),
    recognise_text=lambda text: True,
    read_text=lambda text: (Text(text),),
    sample={"text": "发热是机体对致热原的防御反应，热型有助于判断病因。"},
)
