"""Writes point_ranges.h: which code points are letters, numbers, spaces or need NFC's attention.

    python csrc/data/make_point_ranges.py > csrc/data/point_ranges.h

The classes are asked from the regular expressions of the installed `tokenizers`, code point by code
point, so they are of its Unicode version, whatever Python's is. What NFC may change is taken from
Python's `unicodedata` and from the library's own NFC, whichever says more: to mark a code point too
many costs time and changes no id. tests/unit/tokenizer/test_byte_encoder.py compares every code
point with the installed library.
"""

import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from tokenizers import Regex
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import Split

POINTS = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
CLASSES = {"LETTER": r"\p{L}", "NUMBER": r"\p{N}", "SPACE": r"\s"}
CHUNK = 0x1000


def members(pattern: str) -> set[int]:
    """Code points that the pattern matches."""
    split = Split(Regex(pattern), "isolated")
    found = set()
    for start in range(0, len(POINTS), CHUNK):
        chunk = POINTS[start : start + CHUNK]
        # A comma, which is in none of the classes, keeps matches apart.
        text = "".join(chr(point) + "," for point in chunk)
        pieces = {piece for piece, _ in split.pre_tokenize_str(text)}
        found |= {point for point in chunk if chr(point) in pieces}
    return found - {ord(",")}


def not_composed() -> set[int]:
    """Code points that are changed by NFC, alone or behind another, or that it may reorder."""
    library = NFC()
    found = {point for point in POINTS if unicodedata.combining(chr(point))}
    found |= {point for point in POINTS if library.normalize_str(chr(point)) != chr(point)}
    for point in POINTS:
        character = chr(point)
        if not unicodedata.is_normalized("NFC", character):
            found.add(point)
        parts = unicodedata.normalize("NFD", character)
        found |= {ord(part) for part in parts[1:]}
    return found


def ranges(points: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Runs of neighbours, both ends included."""
    first = last = -1
    for point in sorted(points):
        if point != last + 1 or first < 0:
            if first >= 0:
                yield first, last
            first = point
        last = point
    if first >= 0:
        yield first, last


def write(name: str, points: set[int], put: Callable[[str], None]) -> None:
    """One array."""
    put(f"constexpr PointRange {name}[] = {{")
    row = "".join(f"{{0x{first:X}, 0x{last:X}}}, " for first, last in ranges(points))
    lines = textwrap.wrap(row.replace(", 0x", ",_0x"), 96)
    for line in lines:
        put("    " + line.replace("_", " "))
    put("};\n")


def main() -> None:
    """Writes the header to standard output."""
    print("// Written by make_point_ranges.py. Ranges of code points, both ends included.")
    print("#pragma once\n\nnamespace chimed {\n")
    print("struct PointRange {\n    char32_t first;\n    char32_t last;\n};\n")
    for name, pattern in CLASSES.items():
        write(f"{name}_RANGES", members(pattern), print)
    print("// What NFC may change, reorder or compose with the code point before.")
    write("COMPOSING_RANGES", not_composed(), print)
    print("}  // namespace chimed")


if __name__ == "__main__":
    main()
