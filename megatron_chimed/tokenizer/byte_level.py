"""Byte-level spelling: a vocabulary of byte strings, each byte written as one character.

Bytes that print are their own character; the other 68 take the characters from U+0100 on. A space
is `\u0120`, and the three bytes of a Chinese character look like three accented letters.

Source: GPT-2's `bytes_to_unicode`.
"""

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = tuple(byte for byte in range(256) if byte not in _PRINTABLE)
BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + number): byte for number, byte in enumerate(_OTHERS)
}
"""The byte that each character stands for."""

_CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}
UTF8_CHARACTERS = frozenset(
    character for character, byte in BYTE_OF.items() if byte not in (0xC0, 0xC1) and byte < 0xF5
)
"""The characters of the 243 bytes that UTF-8 uses."""


def to_bytes(spelling: str) -> bytes:
    """The bytes of a vocabulary entry."""
    return bytes(map(BYTE_OF.__getitem__, spelling))


def spell(data: bytes) -> str:
    """The vocabulary entry of some bytes; the inverse of `to_bytes`."""
    return "".join(map(_CHARACTER_OF.__getitem__, data))


def readable(data: bytes) -> str:
    """Bytes for display: text where they are UTF-8, `<0xE5>` for each byte that is not."""
    parts = []
    while data:
        try:
            parts.append(data.decode("utf-8"))
            break
        except UnicodeDecodeError as error:
            parts.append(data[: error.start].decode("utf-8"))
            parts += [f"<0x{byte:02X}>" for byte in data[error.start : error.end]]
            data = data[error.end :]
    return "".join(parts)
