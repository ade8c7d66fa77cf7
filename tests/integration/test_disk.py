"""Too little room on a disk is refused before the work, by each command that knows its size."""

import re
import shutil

import pytest

from tests.integration import commands
from tests.integration.commands import call


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with a checkpoint, and its export."""
    folder = commands.make_project(tmp_path_factory.mktemp("disk") / "project").parent
    words = ["--config", folder / "run.yaml", "--training.train_steps", 1]
    assert call("train", *words).code == 0
    hf = ["export-hf", "--checkpoint", folder / "run", "--output", folder / "hf"]
    assert call("convert_checkpoint", *hf).code == 0
    return folder


@pytest.fixture
def full(monkeypatch):
    usage = shutil._ntuple_diskusage(10**15, 0, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


COMMANDS = {
    "train": ["--config", "{0}/run.yaml", "--output-dir", "{0}/new"],
    "convert_checkpoint export-hf": ["--checkpoint", "{0}/run", "--output", "{0}/new"],
    "convert_checkpoint import-hf": ["--input", "{0}/hf", "--output", "{0}/new"],
    "merge_datasets": ["--inputs", "{0}/data", "{0}/data", "--output-prefix", "{0}/new"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_too_little_room_is_refused_before_anything_is_written(project, full, command):
    tool, *words = command.split()
    words += [word.format(project) for word in COMMANDS[command]]
    done = call(tool, *words)
    assert done.code == 73 and len(done.err.splitlines()) == 1, done.err
    assert re.match(
        r"OutputError: \S+/new\S* has no room for .*: \S+ kB needed, 1 kB free", done.err
    )
    assert "Free some space there" in done.err
    assert not list(project.glob("new*")) and not list(project.glob(".tmp-*"))


def test_a_dry_run_says_what_it_takes_and_that_it_is_too_little(project, full):
    done = call("train", "--config", project / "run.yaml", "--dry-run")
    assert done.code == 0, done.err
    said = next(line for line in done.out.splitlines() if "on disk" in line)
    assert re.search(r"takes \d+ kB on disk, and up to 1 exist at once: \d+ kB; free for \S+", said)
    assert said.endswith(": 1 kB: too little, training would not start")
