"""Reads an input file, decompressing it if needed; damage is an error that names the file."""

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from megatron_chimed.data.reading.encodings import UTF8, Utf8Stream
from megatron_chimed.errors import DataError

COMPRESSION_SUFFIXES = {".gz": "gz", ".zst": "zst"}
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # after a byte from 0x50 to 0x5f
ZSTD_PIECE = 512  # compressed bytes: at most 16 MB decompressed, and still 0.8 GB/s


def compression_of(path: Path) -> str:
    """`gz`, `zst` or "", by the file's first bytes.

    Raises:
        DataError: The name indicates a compression that the content does not have.
    """
    with open(path, "rb") as stream:
        magic = stream.read(4)
    found = ""
    if magic[:2] == GZIP_MAGIC:
        found = "gz"
    elif magic == ZSTD_MAGIC or (magic[1:] == ZSTD_SKIPPABLE and 0x50 <= magic[0] <= 0x5F):
        found = "zst"
    named = COMPRESSION_SUFFIXES.get(path.suffix, found)
    if named != found:
        raise DataError(
            f"{path} does not start like a .{named} file (first bytes {magic.hex()}). Replace it "
            "if it is damaged, or rename it if it is not compressed."
        )
    return found


class InputStream:
    """A file's decompressed bytes, in order.

    Args:
        path: Path of the file.
        compression: `gz`, `zst` or "".
        raw: The open file.
    """

    def __init__(self, path: Path, compression: str, raw: BinaryIO) -> None:
        self.path = path
        self._raw = raw
        self._stream: BinaryIO | io.BufferedIOBase = raw
        if compression == "gz":
            self._stream = gzip.GzipFile(fileobj=raw, mode="rb")
        elif compression == "zst":
            self._stream = io.BufferedReader(_ZstdReader(raw), 1 << 16)

    @property
    def position(self) -> int:
        """Bytes read from the file on disk."""
        return self._raw.tell()

    def read(self, size: int) -> bytes:
        """The next bytes: fewer than `size` only at the end.

        Raises:
            DataError: The compressed data are damaged or truncated.
        """
        try:
            return self._stream.read(size)
        except EOFError as error:
            raise self._damaged("truncated", error) from None
        except (gzip.BadGzipFile, zlib.error, _ZstdError) as error:
            raise self._damaged("damaged", error) from None

    def _damaged(self, how: str, error: Exception) -> DataError:
        return DataError(
            f"{self.path}: the compressed data are {how} near byte {self._raw.tell()} ({error}). "
            "Copy or download the file again."
        )


@contextlib.contextmanager
def open_input(
    path: Path, compression: str, encoding: str = UTF8
) -> Iterator[InputStream | Utf8Stream]:
    """Opens a file for reading as UTF-8, whatever its encoding."""
    with open(path, "rb") as raw:
        stream = InputStream(path, compression, raw)
        yield stream if encoding == UTF8 else Utf8Stream(stream, encoding)


class _ZstdError(Exception):
    """Stands for the library's error: the library is loaded only if a file needs it."""


class _ZstdReader(io.RawIOBase):
    """Reads consecutive frames. The library's own reader takes a truncated frame for the end."""

    def __init__(self, raw: BinaryIO) -> None:
        import zstandard

        self._library = zstandard
        self._raw = raw
        self._frame = None
        self._rest = b""  # compressed, not yet used
        self._ready = memoryview(b"")  # decompressed, not yet returned

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self._ready:
            data = self._rest or self._raw.read(ZSTD_PIECE)
            self._rest = b""
            if not data:
                if self._frame is not None:
                    raise EOFError("the last frame is not complete")
                return 0
            if self._frame is None:
                self._frame = self._library.ZstdDecompressor().decompressobj()
            try:
                self._ready = memoryview(self._frame.decompress(data))
            except self._library.ZstdError as error:
                raise _ZstdError(str(error)) from None
            if self._frame.eof:
                self._rest = self._frame.unused_data
                self._frame = None
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size
