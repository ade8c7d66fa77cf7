"""A run that dies at any moment and is started again gives the bytes of one that never died.

A forked child counts every operation that changes the output's folder and is killed before the
chosen one, without or with a power cut: then what was not synced is lost.
"""

import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from megatron_chimed.data.cleaning.config import CleaningConfig
from megatron_chimed.data.preprocessing import preprocess as preprocessing
from megatron_chimed.data.preprocessing.journal import Spool
from megatron_chimed.data.preprocessing.plan import PreprocessConfig
from megatron_chimed.data.preprocessing.preprocess import preprocess
from megatron_chimed.data.reading import row_block
from megatron_chimed.tokenizer import load_tokenizer
from tests.tiers import full_but
from tests.unit.data.prefixes import renamed
from tests.unit.tokenizer.byte_bpe import write_folder
from tests.unit.tokenizer.samples import LINES, train_model

ROOT = Path(__file__).resolve().parents[2]
SEED = 20240229
FINISHED, KILLED = "finished", "killed"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Two files of conversations with bad, repeated and long rows, and a tokenizer."""
    folder = tmp_path_factory.mktemp("kill")
    (folder / "tokenizer.model").write_bytes(train_model())
    rows = [
        {"instruction": f"{n % 17}. {LINES[n % 5]}", "input": "", "output": LINES[n % 3] * (n % 9)}
        for n in range(24)
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    lines[7] = "{bad"
    (folder / "a.jsonl").write_text("\n".join(lines[:16]) + "\n")
    (folder / "b.jsonl").write_text("\n".join(lines[16:]) + "\n")
    return folder


def config_of(project, prefix, **options):
    return PreprocessConfig(
        inputs=(str(project / "a.jsonl"), str(project / "b.jsonl")),
        tokenizer=str(project / "tokenizer.model"),
        output_prefix=str(prefix),
        stage="sft",
        template="ziya",
        seq_length=200,
        cleaning=CleaningConfig(deduplicate="exact"),
        max_bad_rate=0.5,
        **options,
    )


def files_of(prefix):
    """Names and bytes of an output; the command names the prefix, so it is made equal."""
    content = {path.name: path.read_bytes() for path in prefix.parent.iterdir()}
    return {n: renamed(b, prefix, "PREFIX") for n, b in content.items()}


class Mortal:
    """Counts what changes files; dies before operation `last`, as by a power cut if told so."""

    def __init__(self, folder, last, power_cut):
        self.folder, self.last, self.power_cut = folder, last, power_cut
        self.count = 0
        self.synced = {}
        for owner, name in (
            *((os, "replace"), (os, "unlink"), (Path, "unlink"), (Path, "mkdir")),
            *((os, "fsync"), (Spool, "append"), (Path, "write_bytes"), (Path, "touch")),
            (os, "rmdir"),
        ):
            setattr(owner, name, self.watched(getattr(owner, name), name))
        # It unlinks by way of what was watched above only where it uses no file descriptors.
        shutil._use_fd_functions = False

    def watched(self, call, name):
        def wrapped(*args, **kwargs):
            self.count += 1
            if self.count == self.last:
                self.die()
            if name != "fsync":
                return call(*args, **kwargs)
            stat = os.fstat(args[0])  # a kill alone loses nothing, so no time is spent on the disk
            self.synced[stat.st_ino] = stat.st_size

        return wrapped

    def die(self):
        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        for path in paths if self.power_cut else ():
            size = self.synced.get(path.stat().st_ino, 0)
            if path.stat().st_size > size:  # a part of what was not synced is there, as noise
                with open(path, "r+b") as stream:
                    stream.truncate(size)
                    stream.seek(0, os.SEEK_END)
                    stream.write(b"\0")
        os.kill(os.getpid(), signal.SIGKILL)


def run_mortal(config, last, *, power_cut=False):
    """Runs in a child that is killed before its operation `last`; says how it ended."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            row_block.BLOCK_BYTES = 2000
            preprocessing.JOURNAL_SECONDS = 0.0
            Mortal(Path(config.output_prefix).parent, last, power_cut)
            preprocess(config)
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return KILLED
    assert os.WEXITSTATUS(status) == 0, "the run failed, see its output"
    return FINISHED


def finish(config):
    """The same command again, which finds all that was done."""
    assert run_mortal(config, 10**9) == FINISHED


@pytest.fixture(scope="module")
def expected(project):
    prefix = project / "whole" / "data"
    preprocess(config_of(project, prefix))
    files = files_of(prefix)
    assert len(files) == 6  # with the list of the malformed row
    return files


@pytest.mark.parametrize("power_cut", full_but([True], [False, True]))
def test_a_kill_before_any_operation_changes_nothing(project, expected, tmp_path, power_cut):
    ends = []
    for last in itertools.count(1):
        prefix = tmp_path / f"{last}" / "data"
        prefix.parent.mkdir()
        config = config_of(project, prefix)
        ends.append(run_mortal(config, last, power_cut=power_cut))
        if ends[-1] == KILLED:
            finish(config)
        assert files_of(prefix) == expected, f"killed before operation {last}"
        if ends[-1] == FINISHED:
            break
    assert len(ends) >= 120


@pytest.mark.parametrize("power_cut", full_but([True], [False, True]))
def test_a_kill_while_another_run_is_swept_costs_a_new_start_only(
    project, expected, tmp_path, power_cut
):
    for last in range(1, 25):
        prefix = tmp_path / f"{last}" / "data"
        prefix.parent.mkdir()
        other = config_of(project, prefix, targets="last")
        assert run_mortal(other, 60) == KILLED
        assert (prefix.parent / ".tmp-data.work" / "journal.json").exists()
        assert run_mortal(config_of(project, prefix), last, power_cut=power_cut) == KILLED
        finish(other)
        finish(config_of(project, prefix, overwrite=True))
        assert files_of(prefix) == expected, f"killed before operation {last}"


def test_a_byte_level_run_that_was_killed_gives_the_same_bytes(project, tmp_path):
    """Texts that NFC changes and that spell special tokens, in several blocks."""
    write_folder(tmp_path / "tokenizer")
    texts = [f"{n} e\u0301 <|im_end|> {LINES[n % 5]}" for n in range(60)]
    rows = [json.dumps({"text": text}) + "\n" for text in texts]
    (tmp_path / "texts.jsonl").write_text("".join(rows))
    found = {}
    for name, last in (("whole", 10**9), ("early", 15), ("late", 30)):
        prefix = tmp_path / name / "data"
        prefix.parent.mkdir()
        config = PreprocessConfig(
            inputs=(str(tmp_path / "texts.jsonl"),),
            tokenizer=str(tmp_path / "tokenizer"),
            output_prefix=str(prefix),
        )
        assert run_mortal(config, last, power_cut=True) == (FINISHED if name == "whole" else KILLED)
        finish(dataclasses.replace(config, overwrite=name == "whole"))
        found[name] = files_of(prefix)
    assert found["whole"] == found["early"] == found["late"]
    assert load_tokenizer(tmp_path / "tokenizer").fast.startswith("C++")


def test_many_kills_in_a_row_still_end_with_the_same_bytes(project, expected, tmp_path):
    prefix = tmp_path / "data"
    config = config_of(project, prefix)
    chance = random.Random(SEED)
    kills = 0
    while run_mortal(config, chance.randrange(30, 90), power_cut=kills % 2 == 1) == KILLED:
        kills += 1
        assert kills < 100, "no progress"
    assert kills >= 3
    assert files_of(prefix) == expected


DRIVER = """
import multiprocessing, os, signal, sys
from megatron_chimed.data.preprocessing import preprocess
from megatron_chimed.data.reading import row_block
from megatron_chimed.errors import run_command
from tools import preprocess_data

row_block.BLOCK_BYTES = 200  # many more than are in flight at once
preprocess.JOURNAL_SECONDS = 0.0

def main():
    victim, *words = sys.argv[1:]
    saved = []

    class Journal(preprocess.Journal):
        def save(self, state):
            super().save(state)
            saved.append(state)
            if len(saved) == 2 and victim != "nobody":
                is_parent = victim == "parent"
                pid = os.getpid() if is_parent else multiprocessing.active_children()[0].pid
                os.kill(pid, signal.SIGKILL)

    preprocess.Journal = Journal
    return preprocess_data.main(words)

if __name__ == "__main__":
    sys.exit(run_command(main))
"""


def run_parallel(project, prefix, victim):
    """Runs the tool with two workers, of which or of whose parent one kills itself."""
    words = [
        *("--input", project / "a.jsonl", project / "b.jsonl", "--output-prefix", prefix),
        *("--tokenizer", project / "tokenizer.model", "--stage", "sft", "--template", "ziya"),
        *("--seq-length", 200, "--deduplicate", "exact", "--max-bad-rate", 0.5, "--workers", 2),
    ]
    (project / "driver.py").write_text(DRIVER)
    return subprocess.run(
        [sys.executable, str(project / "driver.py"), victim, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.timing
@pytest.mark.parametrize("victim", ["worker", "parent"])
def test_a_killed_process_of_a_parallel_run_costs_nothing(project, expected, tmp_path, victim):
    prefix = tmp_path / "data"
    result = run_parallel(project, prefix, victim)
    if victim == "worker":
        assert result.returncode == 75, result.stderr
        assert "one of 2 worker processes was killed" in result.stderr
        assert "run the same command again to resume" in result.stderr
    else:
        assert result.returncode == -signal.SIGKILL
    assert {path.name for path in tmp_path.iterdir()} == {".tmp-data.work"}
    result = run_parallel(project, prefix, "nobody")
    assert result.returncode == 0, result.stderr
    assert "resumed at 0.0 of 0.0 MB: " in result.stderr
    assert files_of(prefix) == expected
