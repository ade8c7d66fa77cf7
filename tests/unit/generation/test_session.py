"""Opening a checkpoint: precision, what is refused, and that nothing stays open after it."""

import contextlib

import pytest
import torch
import torch.distributed as dist

from megatron_chimed.engine import ParallelConfig
from megatron_chimed.errors import CheckpointError, ConfigError
from megatron_chimed.generation import SamplingConfig, generate, open_session
from tests.unit.generation import toy


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return toy.save_reference(tmp_path_factory.mktemp("reference"))


def one_rank(checkpoint, **settings):
    return open_session(checkpoint, ParallelConfig(), world=(0, 1, 0), **settings)


@contextlib.contextmanager
def refused(error, message):
    with pytest.raises(error, match=message):
        yield
    assert not dist.is_initialized(), "the process group was left open"


@pytest.mark.parametrize(
    ("asked", "dtype"), [(None, torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision_is_the_stored_one_unless_given(checkpoint, asked, dtype):
    with one_rank(checkpoint, precision=asked) as session:
        assert {p.dtype for chunk in session.chunks for p in chunk.parameters()} == {dtype}
        (completion,) = generate(session, [[1, 2, 3]], SamplingConfig(max_new_tokens=4))
        assert len(completion.token_ids) == 4 or completion.finish_reason == "stop"
    assert not dist.is_initialized()


def test_newest_of_a_run_is_taken(tmp_path):
    root = tmp_path / "run" / "checkpoints"
    toy.save_reference(root, tokenizer={})
    toy.save_reference(root, iteration=1)
    with one_rank(tmp_path / "run") as session:
        assert session.tokenizer is not None


def test_damaged_newest_is_refused_and_no_older_one_taken(tmp_path):
    toy.save_reference(tmp_path)
    damaged = toy.save_reference(tmp_path, iteration=1)
    path = next(damaged.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with refused(CheckpointError, f"{path.name}"), one_rank(tmp_path):
        pass


def test_other_tokenizer_is_refused(tmp_path):
    other = toy.toy_tokenizer(345).model_bytes
    path = toy.save_reference(tmp_path, tokenizer={"tokenizer.model": other})
    with refused(CheckpointError, "has 345 tokens, but the model has rows for 340"), one_rank(path):
        pass


def test_checkpoint_without_a_model_is_refused(tmp_path):
    path = toy.save_reference(tmp_path, config={"other": 1})
    with refused(CheckpointError, "model"), one_rank(path):
        pass


def test_layout_that_does_not_fit_is_refused(checkpoint):
    parallel = ParallelConfig(tensor_parallel_size=3)
    with (
        refused(ConfigError, "num_attention_heads .8. is not divisible by .* .3."),
        open_session(checkpoint, parallel, world=(0, 3, 0)),
    ):
        pass
