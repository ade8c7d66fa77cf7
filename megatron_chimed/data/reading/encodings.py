"""Files in another encoding than UTF-8: read as UTF-8, with places in their own bytes.

Everything behind the stream sees UTF-8. A byte that the encoding does not allow becomes the UTF-8
form of a lone surrogate, which no valid text has: its row is malformed, the others are not.
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from megatron_chimed.data.formats.row import RowError
from megatron_chimed.errors import ConfigError, DataError, near

UTF8 = "utf-8"
PIECE_BYTES = 1 << 20
COMMON = ("utf-8", "gb18030", "gbk", "big5", "utf-16", "utf-16-le", "utf-16-be")
SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "utf-8-sig": UTF8}
# A byte of these means something else depending on what came before.
WITH_STATE = re.compile(r"iso2022|hz|utf.7|punycode|idna|escape|mbcs|oem|undefined")
BYTE_ORDER_MARKS = {
    "utf-32": {b"\xff\xfe\0\0": "utf-32-le", b"\0\0\xfe\xff": "utf-32-be"},
    "utf-16": {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"},
}
MARK = 0xDC00  # plus the byte that the encoding does not allow
MARKS = re.compile("[\udc00-\udcff]")
MARK_BYTES = re.compile(rb"\xed([\xb0-\xb3])([\x80-\xbf])")

GUESSED = ("gb18030", "big5", "utf-16-le", "utf-16-be")
GUESS_BYTES = 1 << 16
SURE_SHARE = 0.7  # of the characters of a guess that are frequent
SURE_CHARACTERS = 8  # beyond ASCII; fewer may be valid in two encodings by chance


class _Source(Protocol):
    path: Path

    @property
    def position(self) -> int: ...

    def read(self, size: int) -> bytes: ...


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError), "only decoding marks bytes"
    refused = error.object[error.start : error.end]
    return "".join(chr(MARK + byte) for byte in refused), error.end


# Names of error handlers belong to the process; this one is ours alone and never changes.
MARKING = "megatron_chimed.mark"
codecs.register_error(MARKING, _mark)


def encoding_named(name: str) -> str:
    """Python's name of an encoding; of a superset, where people use a narrower name for it.

    Raises:
        ConfigError: It is unknown, not one of texts, or such that a row cannot be read alone.
    """
    try:
        info = codecs.lookup(name)
        "".encode(name)  # refuses codecs of bytes
    except (LookupError, UnicodeError, ValueError):
        hint = near(name.lower(), COMMON)
        did_you_mean = f" Did you mean {hint}?" if hint else ""
        raise ConfigError(
            f"--encoding {name!r} is unknown.{did_you_mean} Common ones: {', '.join(COMMON)}."
        ) from None
    if WITH_STATE.search(info.name):
        raise ConfigError(
            f"--encoding {name}: a row cannot be read without all that comes before it. Convert "
            "the files to UTF-8."
        )
    return SUPERSETS.get(info.name, info.name)


def encoding_of(encoding: str, head: bytes, path: Path) -> str:
    """The encoding of a file, with the byte order.

    Args:
        encoding: As the user gave it, from `encoding_named`.
        head: The first bytes of the file, decompressed.
        path: Its name.

    Raises:
        DataError: The first bytes are in another encoding, or have no byte-order mark.
    """
    if encoding in BYTE_ORDER_MARKS:
        for mark, found in BYTE_ORDER_MARKS[encoding].items():
            if head.startswith(mark):
                return found
        _refuse_utf8(encoding, head, path)
        raise DataError(
            f"{path} has no byte-order mark, so that {encoding} has no order of bytes. Pass "
            f"--encoding {encoding}-le or {encoding}-be."
        )
    if encoding != UTF8:
        _refuse_utf8(encoding, head, path)
    _refuse_other(encoding, head, path)
    return encoding


def is_utf8(head: bytes) -> bool:
    """Whether the first bytes of a file are a text in UTF-8."""
    return b"\0" not in head and _decoded(head, UTF8)[1]


def _refuse_utf8(encoding: str, head: bytes, path: Path) -> None:
    text, is_valid = _decoded(head, UTF8)
    if is_valid and b"\0" not in head and sum(map(_is_beyond_ascii, text)) >= SURE_CHARACTERS:
        raise DataError(
            f"{path} is in UTF-8, not in {encoding}. Read it without --encoding {encoding}, apart "
            "from files that need it."
        )


def _refuse_other(encoding: str, head: bytes, path: Path) -> None:
    text, is_valid = _decoded(head, encoding)
    if encoding == UTF8 and is_valid and b"\0" not in head:
        return
    if encoding == UTF8:
        refused, beyond = len(MARKS.findall(text)), sum(map(_is_beyond_ascii, text))
        is_sound = 2 * refused <= beyond and b"\0" not in head
    else:  # most bytes are valid in several Chinese encodings; of others, too little is known
        is_sound = encoding not in GUESSED or _frequent_share(head, encoding) >= SURE_SHARE
    likely = None if is_sound else likely_encoding(head)
    if likely in (None, encoding):
        return  # a few damaged bytes are reported with their rows
    raise DataError(
        f"{path} is not in {encoding}; its first bytes look like {likely}. Pass --encoding "
        f"{likely}, or convert the file to UTF-8."
    )


def _is_beyond_ascii(character: str) -> bool:
    return character > "\x7f"


def _decoded(head: bytes, encoding: str) -> tuple[str, bool]:
    """The start of a text, and whether all of it is valid; the last character may be cut."""
    decoder = codecs.getincrementaldecoder(encoding)(MARKING)
    text = decoder.decode(head[:GUESS_BYTES])
    return text, MARKS.search(text) is None


def likely_encoding(head: bytes) -> str | None:
    """The encoding that the first bytes of a text that is not UTF-8 look like, if any does."""
    for name, marks in BYTE_ORDER_MARKS.items():
        if head.startswith(tuple(marks)):
            return name
    shares = {name: _frequent_share(head, name) for name in GUESSED}
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] >= SURE_SHARE else None


def _frequent_share(head: bytes, encoding: str) -> float:
    """Share of characters that are frequent in a Chinese text; a refused byte is none."""
    text, _ = _decoded(head, encoding)
    is_wide = encoding.startswith("utf-16")
    judged = text if is_wide else [character for character in text if _is_beyond_ascii(character)]
    if not judged:
        return 0.0
    charset = "big5" if encoding == "big5" else "gb2312"
    return sum(_is_frequent(character, charset) for character in judged) / len(judged)


def _is_frequent(character: str, charset: str) -> bool:
    """Whether a character is ASCII or in the first level of a Chinese character set."""
    if not _is_beyond_ascii(character):
        return character.isprintable() or character.isspace()
    code = character.encode(charset, "ignore")
    if len(code) != 2:
        return False
    if charset == "big5":
        return code[0] == 0xA1 or 0xA4 <= code[0] <= 0xC6
    return code[0] in (0xA1, 0xA3) or 0xB0 <= code[0] <= 0xD7


class Utf8Stream:
    """The text of a stream in another encoding, as UTF-8; a refused byte is a lone surrogate.

    Args:
        source: The decompressed bytes.
        encoding: From `encoding_of`.
    """

    def __init__(self, source: _Source, encoding: str) -> None:
        self.path = source.path
        self._source = source
        self._decoder = codecs.getincrementaldecoder(encoding)(MARKING)
        self._ready = b""
        self._is_end = False

    @property
    def position(self) -> int:
        """Bytes read from the file on disk."""
        return self._source.position

    def read(self, size: int) -> bytes:
        """The next bytes: fewer than `size` only at the end.

        Raises:
            DataError: The compressed data are damaged or truncated.
        """
        while len(self._ready) < size and not self._is_end:
            piece = self._source.read(PIECE_BYTES)
            self._is_end = not piece
            text = self._decoder.decode(piece, final=self._is_end)
            self._ready += text.encode("utf-8", "surrogatepass")
        taken, self._ready = self._ready[:size], self._ready[size:]
        return taken


class OwnBytes:
    """Counts the bytes that a text in UTF-8 takes in the encoding it came from.

    Args:
        encoding: From `encoding_of`.
    """

    def __init__(self, encoding: str) -> None:
        self.size = 0
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass")

    def feed(self, piece: bytes | memoryview) -> int:
        """Adds the next bytes and returns the size so far, a cut character not included."""
        bare, refused = MARKS.subn("", self._decoder.decode(piece))
        self.size += len(bare.encode(self._encoding, "replace")) + refused
        return self.size


def own_places(
    rows: Iterator[tuple[int, int, Any]], data: bytes, start: int, encoding: str
) -> Iterator[tuple[int, int, Any]]:
    """The rows of a block with their byte offsets in the encoding of the file.

    Args:
        rows: Line, byte offset and row, where the offset counts UTF-8 bytes from `start`.
        data: The block in UTF-8.
        start: Byte offset of the block in the encoding of the file.
        encoding: That encoding.
    """
    own, done = OwnBytes(encoding), 0
    for line, offset, row in rows:
        begin = offset - start
        own.feed(memoryview(data)[done:begin])
        done = begin
        is_refused = isinstance(row, RowError) and str(row).startswith("invalid UTF-8")
        found = _refused(data, begin, encoding) if is_refused else row
        yield line, start + own.size, found


def _refused(data: bytes, begin: int, encoding: str) -> RowError:
    match = MARK_BYTES.search(data, begin)
    assert match is not None, "a row is not UTF-8, but no byte of it was marked"
    byte = (match[1][0] & 0x3) << 6 | match[2][0] & 0x3F
    before = OwnBytes(encoding).feed(memoryview(data)[begin : match.start()])
    return RowError(f"invalid {encoding}: byte 0x{byte:02X} at byte {before} of the row")
