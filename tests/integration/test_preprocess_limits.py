"""Memory and disk: bounded for any input, and an error if there is no room."""

import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from megatron_chimed.data.datasets.indexed import IndexedDataset
from megatron_chimed.tokenizer import load_tokenizer
from tests.unit.tokenizer.samples import LINES, train_model

ROOT = Path(__file__).resolve().parents[2]
MAX_PSS_MB = 300
MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("limits")
    (folder / "tokenizer.model").write_bytes(train_model())
    return folder


def rows(count):
    lines = [json.dumps({"text": LINES[n % 5] * 8}, ensure_ascii=False) for n in range(count)]
    return "".join(f"{line}\n" for line in lines).encode()


def words(folder, name, *more):
    script = ROOT / "tools" / "preprocess_data.py"
    return [
        *(sys.executable, str(script), "--input", str(folder / name)),
        *("--tokenizer", str(folder / "tokenizer.model")),
        *("--output-prefix", str(folder / "out" / name), *more),
    ]


def family_of(pid):
    """A process and all below it."""
    parents = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                stat = (path / "stat").read_text()
            except OSError:  # ended meanwhile
                continue
            parents[int(path.name)] = int(stat.rpartition(")")[2].split()[1])
    family = [pid]
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return family


def memory_of(pid):
    """Proportional set size in MB: what processes share is counted once."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) / 1000 if found else 0.0


def run_measured(command):
    """Runs a command; returns its error output and the largest sum over its processes in MB."""
    peak = 0.0
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 200
    while process.poll() is None:
        assert time.monotonic() < end, "it takes too long"
        peak = max(peak, sum(map(memory_of, family_of(process.pid))))
        time.sleep(0.02)  # between samples
    error = process.stderr.read()
    assert process.returncode == 0, error
    return error, peak


def test_memory_stays_below_300_mb_whatever_the_input_holds(folder):
    """100 MB of rows with a row of 65 MiB among them, which is never held."""
    path = folder / "large.jsonl"
    part = rows(1000)
    with open(path, "wb") as stream:
        for number in range(100 * 10**6 // len(part)):
            stream.write(part)
            if number == 3:
                stream.write(b'{"text": "' + b"x" * (65 * MIB) + b'"}\n')
                bad_line = 4001
    _, peak = run_measured(
        words(folder, "large.jsonl", "--workers", "2", "--max-bad-rate", "0.001")
    )
    assert 60 < peak < MAX_PSS_MB, "the measure or the memory is wrong"
    sidecar = IndexedDataset(folder / "out" / "large.jsonl").sidecar
    assert sidecar.documents == 100 * 10**6 // len(part) * 1000
    [entry] = (folder / "out" / "large.jsonl.quarantine.jsonl").read_text().splitlines()
    entry = json.loads(entry)
    assert (entry["line"], entry["byte"]) == (bad_line, 4 * len(part))
    assert re.match(r"a row of 681\d{5} bytes, more than --max-row-bytes 67108864", entry["reason"])


@pytest.mark.parametrize("is_escaped", [False, True])
def test_a_row_of_60_mib_stays_below_300_mb_beside_two_workers(folder, is_escaped):
    """Base memory, the row's bytes and its text; other rows come before, so that workers run."""
    path = folder / f"long{is_escaped}.jsonl"
    unit = json.dumps("".join(LINES), ensure_ascii=is_escaped)[1:-1].encode()
    times = 60 * MIB // len(unit)
    path.write_bytes(rows(2000) + b'{"text": "' + unit * times + b'"}\n' + rows(2000))
    _, peak = run_measured(words(folder, path.name, "--workers", "2"))
    assert 180 < peak < MAX_PSS_MB, "the measure or the memory is wrong"
    dataset = IndexedDataset(folder / "out" / path.name)
    assert dataset.sidecar.documents == 4001
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    # The same text again and again: its ids repeat but for the first ones and the last.
    few = tokenizer.encode("".join(LINES) * 3)
    once = len(few) - len(tokenizer.encode("".join(LINES) * 2))
    found = dataset[2000]
    assert len(found) == len(few) + (times - 3) * once + 1
    assert found[: len(few) - 4].tolist() == few[:-4]
    assert np.array_equal(found[once * 2 : -99], found[once : -99 - once])


def test_a_full_disk_is_an_error_and_the_same_command_works_when_there_is_room(folder):
    (folder / "disk.jsonl").write_bytes(rows(3000))

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    options = {"capture_output": True, "text": True, "timeout": 60, "cwd": ROOT}
    command = words(folder, "disk.jsonl", "--workers", "2")
    result = subprocess.run(command, **options, preexec_fn=fill)
    assert result.returncode == 73, result.stderr
    assert result.stderr.startswith("OutputError: ") and "File too large" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list((folder / "out").glob("disk*"))
    result = subprocess.run(command, **options)
    assert result.returncode == 0, result.stderr
    assert IndexedDataset(folder / "out" / "disk.jsonl").num_documents == 3000
