"""A blend of more prefixes than a process may usually have files open."""

import contextlib
import gc
import itertools
import os
import resource

import pytest

from megatron_chimed import errors
from megatron_chimed.data.datasets.config import BlendSource, DataConfig, build_datasets
from megatron_chimed.data.preprocessing.merging import MergeConfig, merge
from tests.unit.data.packed_prefixes import answered, write_conversations, write_groups
from tests.unit.data.prefixes import IDENTITY, write_prefix

COUNT, ROOM = 40, 30  # each prefix takes two descriptors or more
GROUPS = [([5, 6], [([7, 8], 0), ([9], 1)])] * 3


def write(stage, prefix):
    if stage == "pretrain":
        return write_prefix(prefix, [[5, 6, 7, 8]] * 9)
    if stage == "sft":
        return write_conversations(prefix, answered([6, 8, 7]))
    return write_groups(prefix, GROUPS)


@contextlib.contextmanager
def few_files():
    """Room for a few more open files than there are."""
    gc.collect()  # what other tests left mapped
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = set(map(int, os.listdir("/proc/self/fd")))
    free = (number for number in range(hard) if number not in used)
    limit = next(itertools.islice(free, ROOM, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_all(stage, names):
    datasets = build_datasets(
        DataConfig(train=tuple(BlendSource(prefix=str(name)) for name in names), seq_length=16),
        stage=stage,
        vocab_size=1000,
        tokenizer_identity=IDENTITY,
        eod_id=2,
        seed=0,
    )
    assert len(datasets.sources) == COUNT
    return 0


@pytest.mark.parametrize("stage", ["pretrain", "sft", "preference"])
def test_a_blend_may_have_any_number(tmp_path, monkeypatch, capsys, stage):
    names = [tmp_path / f"part_{number}" for number in range(COUNT)]
    for name in names:
        write(stage, name)
    with few_files(), monkeypatch.context() as without:
        # Where the system allows no more, the message is about that and not about the disk.
        without.setattr(errors, "_raise_file_limit", lambda: None)
        assert errors.run_command(lambda: open_all(stage, names)) == 78
    told = capsys.readouterr().err
    assert "too many open files: " in told and "part_" in told and "ulimit -n" in told
    with few_files():
        assert errors.run_command(lambda: open_all(stage, names)) == 0


def test_merging_opens_one_at_a_time(tmp_path, monkeypatch):
    names = [str(tmp_path / f"part_{number}") for number in range(COUNT)]
    for name in names:
        write("pretrain", name)
    with few_files():
        merge(MergeConfig(inputs=tuple(names), output_prefix=str(tmp_path / "all")))
    assert (tmp_path / "all.idx").exists()
