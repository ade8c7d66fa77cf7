"""Training runs of one rank in the test's own process."""

import contextlib
import dataclasses
import uuid

import torch

from megatron_chimed import engine
from megatron_chimed.training import loop, state
from tests.distributed import jobs


@contextlib.contextmanager
def job(tmp_path, *, tokenizer="none", order=None, **options):
    """A built job; `order` is what its data say of the order of samples."""
    tmp_path.mkdir(parents=True, exist_ok=True)  # the store waits minutes for a missing folder
    store = str(tmp_path / f"store-{uuid.uuid4().hex}")
    options = {"parallel": {}, "output_dir": str(tmp_path / "run"), **options}
    try:
        built = jobs.make_job(0, 1, store, **options)
        yield dataclasses.replace(
            built,
            config=dataclasses.replace(built.config, tokenizer_identity=tokenizer),
            datasets=dataclasses.replace(built.datasets, order=order or {}),
        )
    finally:
        engine.leave()


def train(tmp_path, *, datasets=None, **options):
    """Runs the loop; the outcome and what the run started from."""
    with job(tmp_path, **options) as built:
        if datasets is not None:
            built = dataclasses.replace(built, datasets=datasets)
        said = state.restore(built)
        return loop.train(built, run_id="test", starts_from=said), said


def weights(built):
    """Copies of all weights by name, fp32 master weights and moments too."""
    return {shard.key: shard.tensor.clone() for shard in built.shards()}


def same(left, right):
    """Whether two such states are equal, NaN equal to NaN."""
    return left.keys() == right.keys() and all(
        torch.equal(a.view(torch.uint8), right[key].contiguous().view(torch.uint8))
        for key, a in ((key, tensor.contiguous()) for key, tensor in left.items())
    )
