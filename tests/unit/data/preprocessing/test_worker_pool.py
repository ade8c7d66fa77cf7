"""Worker processes: bounded work, and no hang whichever process dies."""

import dataclasses
import os
import pickle
import signal
import subprocess
import sys

import pytest

from megatron_chimed.data.cleaning.config import CleaningConfig
from megatron_chimed.data.formats.format import ReadOptions
from megatron_chimed.data.preprocessing import worker_pool
from megatron_chimed.data.preprocessing.block_encoder import Recipe
from megatron_chimed.data.preprocessing.stage_encoder import StageConfig
from megatron_chimed.data.preprocessing.worker_pool import encode_blocks
from megatron_chimed.data.reading import InputFile, RowBlock
from megatron_chimed.errors import ParallelError
from tests.unit.tokenizer.samples import train_model


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    (folder / "tokenizer.model").write_bytes(train_model())
    (folder / "x.txt").write_text("x")
    return make_recipe(folder)


def make_recipe(folder):
    text = InputFile(path=folder / "x.txt", compression="", container="lines", size=1)
    return Recipe(
        tokenizer=str(folder / "tokenizer.model"),
        inputs=(text,),
        formats=("text",),
        reading=ReadOptions(),
        stage=StageConfig(),
        cleaning=CleaningConfig(),
    )


def block_of(data, number=0):
    return RowBlock(file=0, number=number, first_line=1, offset=0, data=data, position=0)


def _kill_this_process(block):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_an_error_not_a_hang(recipe, monkeypatch):
    monkeypatch.setattr(worker_pool, "_encode_block", _kill_this_process)
    with pytest.raises(ParallelError, match="one of 2 worker processes was killed.*--workers"):
        list(encode_blocks([block_of(b"x\n")], recipe, workers=2))


ENDLESS = """
import itertools, sys
from pathlib import Path
from megatron_chimed.data.preprocessing.worker_pool import encode_blocks
from tests.unit.data.preprocessing.test_worker_pool import block_of, make_recipe
for _ in encode_blocks(itertools.repeat(block_of(b"x")), make_recipe(Path(sys.argv[1])), workers=2):
    print("encoded", flush=True)
"""


@pytest.mark.timing
def test_workers_end_with_a_parent_that_was_killed(recipe):
    """They hold its standard output open, so its end is theirs."""
    folder = os.path.dirname(recipe.tokenizer)
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, folder], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "encoded\n"
    finally:
        process.kill()
    process.communicate(timeout=30)


def test_what_is_sent_with_a_block_does_not_grow_with_the_inputs(recipe, monkeypatch):
    sent = []

    class Pool(worker_pool.ProcessPoolExecutor):
        def submit(self, *task):
            sent.append(len(pickle.dumps(task)))
            return super().submit(*task)

    monkeypatch.setattr(worker_pool, "ProcessPoolExecutor", Pool)
    many = dataclasses.replace(recipe, inputs=recipe.inputs * 999, formats=("text",) * 999)
    for each in (recipe, many):
        assert len(list(encode_blocks([block_of(b"x\n")], each, workers=2))) == 1
    assert sent[0] == sent[1] < 500


def test_a_large_block_is_encoded_here_and_in_its_turn(recipe, monkeypatch):
    monkeypatch.setattr(worker_pool, "LARGE_BYTES", 3)
    data = [b"x\n", b"fever\n", b"y\n", b"fever\nx\n"]
    read = []

    def counted():
        for number, rows in enumerate(data):
            read.append(number)
            yield block_of(rows, number)

    encoded = encode_blocks(counted(), recipe, workers=2)
    found = [(next(encoded).number, len(read)) for _ in data]
    assert found == [(0, 2), (1, 2), (2, 4), (3, 4)]  # nothing is read ahead of a large one


@pytest.mark.parametrize(
    ("size", "in_flight"), [(100, 2 * worker_pool.BLOCKS_PER_WORKER), (1000, 3), (9000, 1)]
)
def test_workers_are_given_a_bounded_amount_of_work(recipe, monkeypatch, size, in_flight):
    """Else a fast reader and a slow writer would fill the memory."""
    monkeypatch.setattr(worker_pool, "MAX_BYTES_IN_FLIGHT", 3999)
    read = []

    def counted():
        for number in range(20):
            read.append(number)
            yield block_of(b"x" * (size - 1) + b"\n", number)

    encoded = encode_blocks(counted(), recipe, workers=2)
    first = next(encoded)
    assert first.number == 0 and len(first.documents) == 1
    assert len(read) == in_flight + 1  # the next one is read, but not given out
    encoded.close()
