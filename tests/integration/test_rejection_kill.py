"""A round that dies at any moment and is started again ends as one that never died."""

import dataclasses
import json
import os
import random
import shutil
import subprocess

import pytest
import yaml

from megatron_chimed.rejection import candidate_scoring
from megatron_chimed.rejection.candidate import read_candidates
from tests.integration import mortal
from tests.integration.commands import PYTHON, ROOT, torchrun
from tests.integration.rejection import configure_rounds, sample

pytestmark = pytest.mark.timing

SEED = 20240229
OPERATIONS = 109  # of a round
KILLS = 6
NAMES = (
    "round_00/samples.parquet",
    "round_01/candidates.parquet",
    "round_01/samples.parquet",
    "round_01/selected.jsonl",
    "round_01/data.bin",
    "round_01/report.json",
)
# In the order of the work, so that each is lived to see.
DEATHS = (
    "3:add",  # fresh answers before the round
    "1:answer_log_probs",
    "1:unlink",  # what was kept of them, once they are written
    "9:add",  # candidates
    "9:add",
    "2:score_sequences",
    "1:write_selected",
    "6:replace",  # its data
    "2:run_schedule",
    "2:rename",  # checkpoints
    "2:add",  # fresh answers after the round
    "1:score_sequences",
    "1:measure_round",
    "1:symlink_to",
)


@pytest.fixture(scope="module")
def whole(rejection_project):
    """The configuration of a round with many steps and saves, and the folder of one unbroken."""
    settings = {"checkpoint": {"save_interval": 1}, "training": {"global_batch_size": 1}}
    training = {"epochs": 3.0, "settings": settings}
    path = configure_rounds(rejection_project, "whole", training=training)
    before, candidate_scoring.SLICE = candidate_scoring.SLICE, mortal.SLICE
    try:
        sample(path)
    finally:
        candidate_scoring.SLICE = before
    return path, rejection_project / "whole"


def run(*words, launcher=PYTHON, timeout=120):
    return subprocess.run(
        [*launcher, "-m", "tests.integration.mortal", *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def kept_lines(path):
    """The finished answers in a file, by prompt and number."""
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n")[1:-1]]
    found = {(row["prompt_id"], row["candidate"]): row for row in rows}
    assert len(found) == len(rows), "an answer was drawn twice"
    return found


def assert_nothing_is_drawn_again(snapshots, folder):
    """What was finished at a kill is finished at the next one, and in the end."""
    earlier = {}
    for number in sorted(map(int, os.listdir(snapshots))):
        for path in (snapshots / str(number)).rglob("*.partial-*"):
            name = str(path.relative_to(snapshots / str(number)))
            found = kept_lines(path)
            for key, row in earlier.get(name, {}).items():
                assert found[key] == row
            earlier[name] = found
    assert any("candidates" in name for name in earlier)
    for name, rows in earlier.items():
        final = folder / name.partition("/.")[0] / name.partition("/.")[2].partition(".partial")[0]
        ended = {(c.prompt, c.number): list(c.token_ids) for c in read_candidates(final)}
        assert all(ended[key] == row["token_ids"] for key, row in rows.items())


def kill_often(whole, tmp_path, deaths):
    path, unbroken = whole
    folder = tmp_path / "out"
    words = ["--config", path, "--output-dir", folder]
    done = run("chain", tmp_path / "kept", ",".join(deaths), *words)
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes(), name
    assert_nothing_is_drawn_again(tmp_path / "kept", folder)
    link = folder / "checkpoints"
    assert link.resolve() == (folder / "round_01/train/checkpoints").resolve()
    left = [path for path in folder.rglob(".*") if path.name != ".lock"]
    assert not left
    return [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("killed")]


def test_a_kill_in_each_part_of_a_round_changes_nothing(whole, tmp_path):
    killed = kill_often(whole, tmp_path, DEATHS)
    assert killed == [death.partition(":")[2] for death in DEATHS]


@pytest.mark.full
def test_kills_at_random_change_nothing(whole, tmp_path):
    chance = random.Random(SEED)
    deaths = [str(chance.randrange(3, OPERATIONS // 2)) for _ in range(KILLS)]
    assert len(kill_often(whole, tmp_path, deaths)) >= 3


def test_two_ranks_of_which_one_is_killed_go_on(whole, tmp_path):
    """Answers are drawn by two replicas; training cuts the matrices in two."""
    path, unbroken = whole
    config = yaml.safe_load(path.read_text())
    config["training"]["settings"]["parallel"] = {"tensor_parallel_size": 2}
    path, folder = tmp_path / "wide.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(config | {"output_dir": str(folder)}))
    for number, death in enumerate(((1, "5:add"), (0, "2:run_schedule"))):
        done = run("once", *death, "--config", path, launcher=torchrun(2))
        assert done.returncode and f"killed before {death[1][2:]}" in done.stdout, done.stderr
        for kept in folder.rglob(".candidates.parquet.partial-*"):
            target = tmp_path / "kept" / str(number) / kept.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(kept, target)
    done = run("once", -1, 0, "--config", path, launcher=torchrun(2))
    assert done.returncode == 0, done.stderr
    assert len([*(tmp_path / "kept").rglob("*.partial-*")]) == 2
    assert_nothing_is_drawn_again(tmp_path / "kept", folder)
    for name in NAMES[:3]:
        ours, theirs = read_candidates(folder / name), read_candidates(unbroken / name)
        for found, expected in zip(ours, theirs, strict=True):
            for field in dataclasses.fields(found):
                value = getattr(expected, field.name)
                is_number = isinstance(value, float)
                value = pytest.approx(value, abs=1e-4) if is_number else value
                assert getattr(found, field.name) == value, (name, field.name)
