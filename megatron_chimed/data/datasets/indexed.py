"""Token files in Megatron's MMIDIDX format, version 1: tokens in `P.bin`, an index in `P.idx`.

Byte-compatible with `megatron.core.datasets.indexed_dataset` in both directions. Opening checks
everything that can be checked without reading the tokens, so that no access can leave the file.
Everything is little-endian and, after the 34-byte header, unaligned.
"""

import mmap
import os
from pathlib import Path

import numpy as np

from megatron_chimed.data.datasets.sidecar import read_sidecar
from megatron_chimed.errors import ConfigError, DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = np.dtype(
    [
        ("magic", "V9"),
        ("version", "<u8"),
        ("dtype_code", "u1"),
        ("sequences", "<u8"),
        ("document_entries", "<u8"),
    ]
)
DTYPES = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    6: np.dtype("<f8"),
    7: np.dtype("<f4"),
    8: np.dtype("<u2"),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
NAMED_DOCUMENTS = 4
CHECK_ENTRIES = 1 << 20  # index entries checked at a time: bounds memory


def dtype_for_vocab(vocab_size: int) -> np.dtype:
    """Megatron's choice: 16 bits for vocabularies below 65500, else 32."""
    return DTYPES[8] if vocab_size < 65500 else DTYPES[4]


def file_paths(prefix: str | os.PathLike) -> tuple[Path, Path, Path]:
    """The token file, index and sidecar of a prefix."""
    return Path(f"{prefix}.bin"), Path(f"{prefix}.idx"), Path(f"{prefix}.meta.json")


class IndexedDataset:
    """Read access to one prefix. Returned arrays outlive the data set.

    Args:
        prefix: Path without `.bin` and `.idx`.
        sidecar_path: Path of the sidecar if it is not `P.meta.json`.

    Attributes:
        lengths: int32 `[sequences]`, tokens per sequence, mapped from the file and unaligned.
        pointers: int64 `[sequences]`, byte offset of each sequence in the token file.
        document_indices: int64 `[documents + 1]`, first sequence of each document, then the total.
        tokens: The whole token file as one vector.
        sidecar: The content of `P.meta.json`, or None for files of other programs.

    Raises:
        ConfigError: The files do not exist.
        DataError: The files are damaged or do not belong together.
    """

    def __init__(self, prefix: str | os.PathLike, *, sidecar_path: Path | None = None) -> None:
        self.prefix = str(prefix)
        self.bin_path, self.idx_path, own_sidecar_path = file_paths(prefix)
        sidecar_path = sidecar_path or own_sidecar_path
        for path in (self.bin_path, self.idx_path):
            if not path.is_file():
                raise ConfigError(
                    f"data {self.prefix!r}: {path} does not exist. Give the path without .bin and "
                    ".idx, as passed to --output-prefix of tools/preprocess_data.py."
                )
        self._read_index()
        self._check_index()
        self.tokens = _map_file(self.bin_path).view(self.dtype)
        self.sidecar = read_sidecar(sidecar_path) if sidecar_path.exists() else None
        self._check_sidecar(sidecar_path)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.get(index)

    @property
    def num_documents(self) -> int:
        """Number of documents; each is one or more consecutive sequences."""
        return len(self.document_indices) - 1

    def get(self, index: int, offset: int = 0, length: int | None = None) -> np.ndarray:
        """Tokens of one sequence, or of a part of it, without a copy.

        Raises:
            IndexError: There is no such sequence, or the part exceeds it.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)} in {self.prefix}")
        size = int(self.lengths[index])
        length = size - offset if length is None else length
        if offset < 0 or length < 0 or offset + length > size:
            raise IndexError(f"tokens {offset}+{length} of sequence {index}, which has {size}")
        start = int(self.pointers[index]) // self.dtype.itemsize + offset
        return self.tokens[start : start + length]

    def document_start(self, document: int) -> int:
        """The document's first token in `tokens`."""
        sequence = int(self.document_indices[document])
        if sequence == len(self):  # an empty document at the end
            return len(self.tokens)
        return int(self.pointers[sequence]) // self.dtype.itemsize

    def document_starts(self, documents: np.ndarray) -> np.ndarray:
        """First token of each document in `tokens`, int64; no document may be empty."""
        return self.sequence_starts(self.document_indices[documents])

    def sequence_starts(self, sequences: np.ndarray) -> np.ndarray:
        """First token of each sequence in `tokens`, int64."""
        return self.pointers[sequences] // self.dtype.itemsize

    def document_lengths(self, first: int, last: int) -> np.ndarray:
        """int32 `[last - first]`: tokens of the documents from `first` up to `last`.

        Raises:
            DataError: A document has 2^31 tokens or more.
        """
        bounds = self.document_indices[first : last + 1]
        lengths = self.lengths[bounds[0] : bounds[-1]].astype(np.int32)  # a copy, hence aligned
        if len(lengths) == last - first and (np.diff(bounds) == 1).all():
            return lengths
        ends = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        sizes = np.diff(ends[bounds - bounds[0]])
        if len(sizes) and sizes.max() > np.iinfo(np.int32).max:
            raise DataError(
                f"{self.prefix}: document {first + int(sizes.argmax())} has {sizes.max()} tokens; "
                "2147483647 is the limit. Split it before preprocessing."
            )
        return sizes.astype(np.int32)

    def name_documents(self, documents: np.ndarray) -> str:
        """The prefix and the first few of these documents, for messages."""
        named = ", ".join(map(str, documents[:NAMED_DOCUMENTS].tolist()))
        more = ", ..." if len(documents) > NAMED_DOCUMENTS else ""
        return f"{self.prefix}, document {named}{more}"

    def _read_index(self) -> None:
        raw = _map_file(self.idx_path)
        if len(raw) < HEADER.itemsize:
            raise self._damaged(0, f"a header of {HEADER.itemsize} bytes", f"{len(raw)} bytes")
        header = raw[: HEADER.itemsize].view(HEADER)[0]
        if bytes(header["magic"]) != MAGIC:
            raise self._damaged(0, MAGIC, bytes(header["magic"]))
        if header["version"] != VERSION:
            raise self._damaged(9, f"version {VERSION}", f"version {header['version']}")
        if int(header["dtype_code"]) not in DTYPES:
            raise self._damaged(17, f"a dtype code of {sorted(DTYPES)}", header["dtype_code"])
        self.dtype = DTYPES[int(header["dtype_code"])]
        sequences, entries = int(header["sequences"]), int(header["document_entries"])
        expected = HEADER.itemsize + 12 * sequences + 8 * entries
        if len(raw) != expected:
            raise self._damaged(
                18, f"{expected} bytes for {sequences} sequences and {entries} document entries",
                f"a file of {len(raw)} bytes",
            )  # fmt: skip
        first, second = HEADER.itemsize + 4 * sequences, HEADER.itemsize + 12 * sequences
        self.lengths = raw[HEADER.itemsize : first].view("<i4")
        self.pointers = raw[first:second].view("<i8")
        self.document_indices = raw[second:].view("<i8")

    def _check_index(self) -> None:
        """Checks the index in blocks; takes about a second for 100 million sequences."""
        at_pointers = HEADER.itemsize + 4 * len(self)
        position = 0
        for start in range(0, len(self), CHECK_ENTRIES):
            lengths = self.lengths[start : start + CHECK_ENTRIES]
            self._check_block(lengths >= 0, lengths, HEADER.itemsize + 4 * start, "a length >= 0")
            ends = position + np.cumsum(lengths.astype(np.int64) * self.dtype.itemsize)
            pointers = self.pointers[start : start + CHECK_ENTRIES]
            begins = np.concatenate(([position], ends[:-1]))
            is_right = pointers == begins
            self._check_block(
                is_right, pointers, at_pointers + 8 * start,
                f"the sum of the lengths before it, {begins[np.argmin(is_right)]}",
            )  # fmt: skip
            position = int(ends[-1])
        self._check_documents(at_pointers + 8 * len(self))
        size = self.bin_path.stat().st_size
        if size != position:
            raise DataError(
                f"{self.bin_path}: {size} bytes, but its index {self.idx_path.name} counts "
                f"{position}. One of them is truncated or from another run: preprocess again."
            )

    def _check_documents(self, at: int) -> None:
        documents = self.document_indices
        if not len(documents) or documents[0] != 0:
            raise self._damaged(at, "document indices that start at 0", documents[:1].tolist())
        if documents[-1] != len(self):
            last = at + 8 * (len(documents) - 1)
            raise self._damaged(last, f"a last document index of {len(self)}", documents[-1])
        for start in range(0, len(documents) - 1, CHECK_ENTRIES):
            block = documents[start : start + CHECK_ENTRIES + 1]
            rises = block[1:] >= block[:-1]
            self._check_block(
                rises, block[1:], at + 8 * (start + 1), "document indices that do not decrease"
            )

    def _check_block(self, is_right: np.ndarray, found: np.ndarray, at: int, wanted: str) -> None:
        if is_right.all():
            return
        wrong = int(np.argmin(is_right))
        raise self._damaged(at + found.itemsize * wrong, wanted, int(found[wrong]))

    def _check_sidecar(self, path: Path) -> None:
        if self.sidecar is None:
            return
        facts = {
            "sequences": len(self),
            "documents": self.num_documents,
            "tokens": len(self.tokens),
            "dtype": self.dtype.name,
        }
        for name, found in facts.items():
            stated = getattr(self.sidecar, name)
            if stated != found:
                raise DataError(
                    f"{path}: {name} is {stated!r}, but {self.idx_path.name} has {found!r}. The "
                    "files are from different runs: preprocess again."
                )

    def _damaged(self, offset: int, expected: object, actual: object) -> DataError:
        return DataError(
            f"{self.idx_path}, byte {offset}: expected {expected}, found {actual}. The index is "
            "damaged or not an MMIDIDX file: preprocess again."
        )


def changed_files(prefix: str, error: IndexError) -> DataError:
    """The error for an access out of range although the files were valid when opened."""
    return DataError(
        f"{prefix}: {error}: the files changed after they were opened. Do not change them while a "
        "run reads them, and start the run again."
    )


def _map_file(path: Path) -> np.ndarray:
    """Maps the file's bytes. The map lives as long as any array that refers to it.

    It keeps the file open, which counts towards the process limit (`errors.run_command`).
    """
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size == 0:  # an empty file cannot be mapped
            return np.empty(0, np.uint8)
        try:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:  # the original error names no file
            raise OSError(error.errno, error.strerror, str(path)) from None
        return np.frombuffer(mapped, np.uint8)
