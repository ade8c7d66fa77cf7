"""What the kernel library and this package must agree on, as a digest that the library holds.

A library that was built for other schemas would be called with arguments that it does not expect,
and one that defines schemas itself ends the process while it is loaded. So the digest is read from
the file before anything of it runs. Imports no torch: csrc/build_kernels.py loads this file alone.
"""

import ast
import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path

OLDEST_TORCH = (2, 10)
"""The version whose stable ABI the library is compiled for; later ones load it too."""

MARK = b"chimed interface "
_DIGITS = 64
_FOLDER = Path(__file__).resolve().parent


def expected_digest(folder: Path = _FOLDER) -> str:
    """SHA-256 of every schema in the modules of a folder and of the ABI of torch; takes 20 ms."""
    described = [f"torch {OLDEST_TORCH}", *sorted(_schemas(folder))]
    return hashlib.sha256("\n".join(described).encode()).hexdigest()


def stored_digest(library: Path) -> str:
    """The digest that a library holds; empty if it was built before libraries held one.

    Raises:
        OSError: The file cannot be read.
    """
    with open(library, "rb") as file:
        if not file.seek(0, 2):
            return ""
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content.find(MARK)
            if start < 0:
                return ""
            return content[start + len(MARK) : start + len(MARK) + _DIGITS].decode(
                "ascii", "replace"
            )


def stamp_source(digest: str) -> str:
    """The C++ source of the object that puts a digest into the library."""
    keep = '__attribute__((used, visibility("default")))'
    return f'extern "C" {keep} const char chimed_interface[] = "{MARK.decode()}{digest}";\n'


def _schemas(folder: Path) -> Iterator[str]:
    """The first argument of each call of `define`."""
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id == "define" and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)
