"""Answers at each validation: alike at every layout, and training does not notice."""

import dataclasses

import pytest

from megatron_chimed import engine
from megatron_chimed.checkpoint.reader import CheckpointReader
from megatron_chimed.observe.metrics import read_metrics
from megatron_chimed.training import loop, state
from megatron_chimed.training.samples import SamplePrompts
from tests.distributed import jobs
from tests.unit.generation.toy import VOCAB_SIZE, toy_tokenizer

IDS = ((3,), (5, 200, 12, 9, 77), tuple(2 + 5 * i for i in range(30)))
DROPOUT = {"attention_dropout": 0.1, "hidden_dropout": 0.1}
TRAINING = {"train_steps": 4, "eval_interval": 2, "eval_steps": 1, "eval_at_start": True}
CASES = {
    "1 rank, dropout": (1, {"model": DROPOUT}),
    "adapters": (1, {"lora": {"rank": 4}}),
    "TP2 with sequence parallelism": (2, {"parallel": jobs.TP2_SP, "model": DROPOUT}),
    "PP2 x VPP2": (2, {"parallel": jobs.PP2_VPP2}),
    "DP2, gather of weights overlapped": (
        2,
        {
            "parallel": {
                **jobs.DP2_DISTRIBUTED,
                "overlap_grad_reduce": True,
                "overlap_param_gather": True,
            }
        },
    ),
}


def train(rank, world_size, store_path, *, asks, output_dir, model=None, **options):
    """Trains with the product's loop; hashes of all files of its checkpoint."""
    options = {"parallel": {}, "training": TRAINING, **options}
    model = {"vocab_size": VOCAB_SIZE, **(model or {})}
    job = jobs.make_job(rank, world_size, store_path, output_dir=output_dir, model=model, **options)
    if asks:
        samples = SamplePrompts(
            texts=("a", "b", "c"),
            ids=IDS,
            are_answers=False,
            tokenizer=toy_tokenizer(),
            max_new_tokens=12,
        )
        logging = dataclasses.replace(job.config.logging, sample_prompts="given")
        config = dataclasses.replace(job.config, samples=samples, logging=logging)
        job = dataclasses.replace(job, config=config)
    try:
        outcome = loop.train(job, run_id="test", starts_from=state.restore(job))
        assert all(chunk.training for chunk in job.chunks)
        return outcome.loss, {
            name: record.sha256
            for name, record in CheckpointReader(outcome.checkpoint).manifest.files.items()
        }
    finally:
        engine.leave()


def answers(folder):
    return [
        (event["step"], event["prompt"], event["answer"])
        for event in read_metrics(folder / "samples.jsonl")
    ]


@pytest.fixture(scope="module")
def one_rank(gloo_pool, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    gloo_pool.run(train, 1, asks=True, output_dir=str(folder), init=False)
    return answers(folder)


@pytest.mark.parametrize("case", CASES)
def test_training_is_the_same_bit_for_bit_and_every_layout_answers(
    gloo_pool, tmp_path, one_rank, case
):
    world_size, options = CASES[case]
    with_it, without = (
        gloo_pool.run(
            train,
            world_size,
            asks=asks,
            output_dir=str(tmp_path / str(asks)),
            init=False,
            **options,
        )
        for asks in (True, False)
    )
    assert with_it == without, "losses, weights, moments and random streams"
    found = answers(tmp_path / "True")
    assert [(step, prompt) for step, prompt, _ in found] == [
        (step, prompt) for step in (0, 2, 4) for prompt in "abc"
    ]
    assert not (tmp_path / "False" / "samples.jsonl").exists()
    if options.get("model") is None and "lora" not in options:
        assert found == one_rank
    else:
        assert found[:3] == one_rank[:3], "before training: neither dropout nor adapters show"
