"""Bytes of an input file, decompressed on the way; damage is an error that names the file."""

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from megatron_chimed.errors import DataError

COMPRESSION_SUFFIXES = {".gz": "gz", ".zst": "zst"}
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # behind a byte 0x50 to 0x5f
ZSTD_PIECE = 512  # compressed bytes, which at the very worst stand for 16 MB; 0.8 GB/s even so


def compression_of(path: Path) -> str:
    """`gz`, `zst` or "", by the file's first bytes.

    Raises:
        DataError: The name says one of the two and the content is not that.
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
            f"{path} does not start as a .{named} file does (first bytes {magic.hex()}). Is it "
            "damaged, or not compressed and misnamed?"
        )
    return found


class Source:
    """A file's bytes in the order they are read.

    Args:
        path: Of the file.
        compression: `gz`, `zst` or "".
        raw: The open file.
    """

    def __init__(self, path: Path, compression: str, raw: BinaryIO) -> None:
        self.path = path
        self._raw = raw
        self._stream: BinaryIO = raw
        if compression == "gz":
            self._stream = gzip.GzipFile(fileobj=raw, mode="rb")
        elif compression == "zst":
            self._stream = io.BufferedReader(_ZstdReader(raw), 1 << 16)

    @property
    def position(self) -> int:
        """Bytes of the file itself that were read."""
        return self._raw.tell()

    def read(self, size: int) -> bytes:
        """The next bytes: fewer than `size` only at the end.

        Raises:
            DataError: The compressed data are damaged or cut off.
        """
        try:
            return self._stream.read(size)
        except EOFError as error:
            raise self._damaged("cut off", error) from None
        except (gzip.BadGzipFile, zlib.error, _ZstdError) as error:
            raise self._damaged("damaged", error) from None

    def _damaged(self, how: str, error: Exception) -> DataError:
        return DataError(
            f"{self.path}: the compressed data are {how} near byte {self._raw.tell()} ({error}). "
            "Copy or download the file again."
        )


@contextlib.contextmanager
def open_source(path: Path, compression: str) -> Iterator[Source]:
    """Opens a file for reading."""
    with open(path, "rb") as raw:
        yield Source(path, compression, raw)


class _ZstdError(Exception):
    """The library's error; the library itself is loaded only when a file needs it."""


class _ZstdReader(io.RawIOBase):
    """Reads frames one after another. The library's own reader takes a cut-off frame for an end."""

    def __init__(self, raw: BinaryIO) -> None:
        import zstandard

        self._library = zstandard
        self._raw = raw
        self._frame = None
        self._rest = b""  # compressed, not yet used
        self._ready = memoryview(b"")  # decompressed, not yet given

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
