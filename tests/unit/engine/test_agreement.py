"""Deciding together where there is one rank."""

import errno
import json

import pytest
import torch
import torch.distributed as dist

from megatron_chimed.engine.agreement import Agreement, json_bytes
from megatron_chimed.errors import CheckpointError, OutputError


def fails(error):
    def action():
        raise error

    return action


@pytest.fixture
def alone():
    """A group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Agreement(dist.new_group(backend="gloo"))
    dist.destroy_process_group()


def test_without_a_group_results_and_errors_stay_what_they_are():
    agreement, thing = Agreement(), object()
    assert agreement.on_all_ranks(lambda: thing) == [thing]
    assert agreement.on_rank_0(lambda: thing) is thing
    assert [*agreement.gather_items(range(3000))] == [*range(3000)]
    with pytest.raises(ZeroDivisionError):
        agreement.on_all_ranks(lambda: 1 / 0)
    with pytest.raises(OutputError, match="OSError: .*No space left"):
        agreement.on_rank_0(fails(OSError(errno.ENOSPC, "No space left")))


def test_a_group_of_one_is_told_json(alone):
    assert alone.on_all_ranks(lambda: (1, "热")) == [[1, "热"]]
    assert alone.on_rank_0(lambda: None) is None
    assert [*alone.gather_items(iter("热咳"))] == ["热", "咳"]
    assert [*alone.gather_items(())] == []
    with pytest.raises(CheckpointError, match="ZeroDivisionError: division by zero"):
        alone.on_all_ranks(lambda: 1 / 0)
    with pytest.raises(CheckpointError, match="TypeError: Object of type Tensor is not JSON"):
        alone.on_all_ranks(lambda: torch.ones(1))


def test_text_travels_as_utf_8_and_names_that_are_none_come_back():
    assert json_bytes({"答": "热"}) == '{"答": "热"}'.encode()
    name = b"\xff\xe7\x83\xad.json".decode("utf-8", "surrogateescape")
    assert json.loads(json_bytes([name])) == [name]
