"""The commands that benchmarks/preprocess.py runs in processes of their own, and their cost.

`line_pool` is the baseline. It does what Megatron's tool for this job does: a pool of Python
processes takes the lines of a file in chunks of 32, each line is parsed with `json`, its text goes
through sentencepiece alone, the ids come back as a list, and the parent appends them to the token
file and to lists that become the index. It is leaner than that tool: neither torch nor Megatron is
imported, nothing looks for added tokens, and the index is written by numpy.
"""

import dataclasses
import functools
import json
import multiprocessing
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_chimed.errors import ConfigError, DataError

LINES_PER_CHUNK = 32
SAMPLE_SECONDS = 0.04
TIMEOUT_SECONDS = 600.0
INDEX_SEQ_LENGTH, MEAN_TOKENS = 4096, 233
SESSION = 3  # its place in /proc/PID/stat after the name


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Cost of a command with all its processes, from start to end."""

    wall_seconds: float
    """Wall time, measured outside the command."""

    cpu_seconds: float
    """User and system time of all processes that were waited for."""

    peak_pss: int
    """Largest sum of proportional set sizes seen, in bytes; a sample each 40 ms."""

    peak_rss: int
    """The same of resident set sizes, which count shared pages once per process."""


def run_measured(command: Sequence[str]) -> Costs:
    """Runs a command in a session of its own and measures it; one at a time.

    Raises:
        ConfigError: It failed.
        subprocess.TimeoutExpired: It took longer than 10 minutes and was killed.
    """
    before, start = _children_seconds(), time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parent,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    memory = _MemorySampler(process.pid)
    memory.start()
    try:
        message = process.communicate(timeout=TIMEOUT_SECONDS)[1]
        elapsed = time.monotonic() - start
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        memory.stop()
    if process.returncode:
        raise ConfigError(f"exit code {process.returncode} of {' '.join(command)}:\n{message}")
    return Costs(
        wall_seconds=elapsed,
        cpu_seconds=_children_seconds() - before,
        peak_pss=memory.peaks[0],
        peak_rss=memory.peaks[1],
    )


def python_call(name: str, *arguments: object) -> list[str]:
    """The command that calls a function of this module with strings."""
    code = f"import sys, preprocess_commands; preprocess_commands.{name}(*sys.argv[1:])"
    return [sys.executable, "-c", code, *map(str, arguments)]


class _MemorySampler(threading.Thread):
    """Reads what the processes of a session hold, until it is stopped."""

    def __init__(self, session: int) -> None:
        super().__init__(daemon=True)
        self.peaks = (0, 0)  # of PSS and RSS, bytes
        self._session = str(session)
        self._is_over = threading.Event()

    def run(self) -> None:
        while not self._is_over.wait(SAMPLE_SECONDS):
            sizes = [self._sizes(name) for name in os.listdir("/proc") if name.isdecimal()]
            sums = (sum(column) for column in zip(*sizes, strict=True))
            self.peaks = tuple(map(max, self.peaks, sums))

    def stop(self) -> None:
        self._is_over.set()
        self.join()

    def _sizes(self, process: str) -> tuple[int, int]:
        """PSS and RSS; 0 of a process of another session or one that has ended."""
        try:
            with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as stream:
                fields = stream.read().rpartition(")")[2].split()
            if fields[SESSION] != self._session:
                return 0, 0
            with open(f"/proc/{process}/smaps_rollup", encoding="ascii") as stream:
                found = {line.split(":")[0]: line.split()[1] for line in list(stream)[1:]}
        except (OSError, IndexError):
            return 0, 0
        return int(found["Pss"]) * 1024, int(found["Rss"]) * 1024


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def line_pool(lines: str, model: str, prefix: str, workers: str) -> None:
    """The baseline: JSON lines with a `text` to a token file and its index."""
    encode = functools.partial(_encode_line, model)
    _run_pool(encode, lines, prefix, int(workers), _processor(model).eos_id(), np.uint16)


def byte_line_pool(lines: str, tokenizer_json: str, prefix: str, workers: str, end: str) -> None:
    """The same with a byte-level vocabulary, as the `tokenizers` library encodes it."""
    encode = functools.partial(_encode_line_by_library, tokenizer_json)
    _run_pool(encode, lines, prefix, int(workers), int(end), np.int32)


def megatron_loop(lines: str, folder: str, prefix: str, workers: str, end: str) -> None:
    """What Megatron-LM's preprocess_data.py does for a Hugging Face tokenizer, written anew.

    megatron-core's own `IndexedDatasetBuilder` writes the files. The tool also imports
    `megatron.training`, which is left out here.
    """
    from megatron.core.datasets import indexed_dataset

    vocab_size = len(_fast_tokenizer(folder))
    dtype = indexed_dataset.DType.optimal_dtype(vocab_size)
    builder = indexed_dataset.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    encode = functools.partial(_encode_line_by_transformers, folder, int(end))
    with multiprocessing.Pool(int(workers)) as pool, open(lines, encoding="utf-8") as stream:
        for ids, lengths, _ in pool.imap(encode, stream, LINES_PER_CHUNK):
            builder.add_document(ids, lengths)
        builder.finalize(f"{prefix}.idx")


@functools.lru_cache(maxsize=1)
def _fast_tokenizer(folder: str) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder)


def _encode_line_by_transformers(
    folder: str, end: int, line: str
) -> tuple[list[int], list[int], int]:
    tokenizer = _fast_tokenizer(folder)
    ids = tokenizer(json.loads(line)["text"], add_special_tokens=False).input_ids
    if ids:
        ids.append(end)
    return ids, [len(ids)] if ids else [], len(line)


def _run_pool(
    encode: Callable[[str], tuple[list[int], int]],
    lines: str,
    prefix: str,
    workers: int,
    end_id: int,
    dtype: type[np.generic],
) -> None:
    lengths: list[int] = []
    with (
        multiprocessing.Pool(workers) as pool,
        open(lines, encoding="utf-8") as stream,
        open(f"{prefix}.bin", "wb") as tokens,
    ):
        for ids, _ in pool.imap(encode, stream, LINES_PER_CHUNK):
            ids.append(end_id)
            tokens.write(np.array(ids, dtype).tobytes())
            lengths.append(len(ids))
    _write_index(prefix, lengths, np.dtype(dtype))


@functools.lru_cache(maxsize=1)
def _processor(model: str) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=model)


def _encode_line(model: str, line: str) -> tuple[list[int], int]:
    return _processor(model).encode(json.loads(line)["text"]), len(line)


@functools.lru_cache(maxsize=1)
def _library(tokenizer_json: str) -> Any:
    import tokenizers

    return tokenizers.Tokenizer.from_file(tokenizer_json)


def _encode_line_by_library(tokenizer_json: str, line: str) -> tuple[list[int], int]:
    encoded = _library(tokenizer_json).encode(json.loads(line)["text"], add_special_tokens=False)
    return encoded.ids, len(line)


def _write_index(prefix: str, lengths: list[int], dtype: np.dtype) -> None:
    code = {np.dtype(np.uint16): 8, np.dtype(np.int32): 4}[dtype]  # Megatron's
    sizes = np.array(lengths, np.int64)
    with open(f"{prefix}.idx", "wb") as index:
        index.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sizes), len(sizes) + 1))
        index.write(sizes.astype(np.int32).tobytes())
        index.write(((np.cumsum(sizes) - sizes) * dtype.itemsize).tobytes())
        index.write(np.arange(len(sizes) + 1, dtype=np.int64).tobytes())


def measure_index(folder: Path, documents: int) -> dict[str, Any]:
    """Writes, opens and shuffles an index of documents without any tokens.

    Raises:
        DataError: The index does not hold what was written.
    """
    from megatron_chimed.data.datasets.indexed import IndexedDataset

    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 2 * MEAN_TOKENS, documents, np.int32)
    lengths.tofile(folder / "lengths")
    prefix = folder / "large"
    steps = {"write": run_measured(python_call("write_large_index", folder / "lengths", prefix))}
    (folder / "large.bin").touch()
    os.truncate(folder / "large.bin", 2 * int(lengths.sum(dtype=np.int64)))  # takes no space
    if not np.array_equal(IndexedDataset(prefix).lengths, lengths):
        raise DataError("the index holds other lengths than were written: no time is worth it.")
    steps["open and check"] = run_measured(python_call("open_large_index", prefix))
    steps["open, epoch"] = run_measured(python_call("build_epoch", prefix, INDEX_SEQ_LENGTH))
    size = (folder / "large.idx").stat().st_size
    for path in folder.glob("large.*"):
        path.unlink()
    megatron = run_measured(python_call("import_megatron"))
    return {
        "documents": documents,
        "bytes": size,
        "steps": {name: dataclasses.asdict(costs) for name, costs in steps.items()},
        "megatron_import": dataclasses.asdict(megatron),
    }


def import_megatron() -> None:
    """Part of what Megatron's own tool imports at its start."""
    import megatron.core.datasets.indexed_dataset  # noqa: F401


def write_large_index(lengths: str, prefix: str) -> None:
    """Writes an index of uint16 documents whose lengths are in a file of int32."""
    from megatron_chimed.data.preprocessing.output_files import write_index

    write_index(Path(f"{prefix}.idx"), np.dtype(np.uint16), Path(lengths), None)


def open_large_index(prefix: str) -> None:
    """Opens and checks an index."""
    from megatron_chimed.data.datasets.indexed import IndexedDataset

    IndexedDataset(prefix)


def build_epoch(prefix: str, seq_length: str) -> None:
    """Opens an index, shuffles an epoch of its documents, finds the samples and reads one."""
    from megatron_chimed.data.datasets.indexed import IndexedDataset
    from megatron_chimed.data.datasets.pretrain import PretrainDataset

    indexed = IndexedDataset(prefix)
    documents = (0, indexed.num_documents)
    PretrainDataset(indexed, documents=documents, seq_length=int(seq_length), seed=0)[0]
