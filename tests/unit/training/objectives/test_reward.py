"""Which candidates are compared, what the reward objective reports, and where its head is from."""

import dataclasses

import pytest
import torch

from megatron_chimed import engine
from megatron_chimed.errors import CheckpointError, ConfigError
from megatron_chimed.model import SCORE_KEY
from megatron_chimed.training import state
from megatron_chimed.training.objectives.pairs import find_candidates
from megatron_chimed.training.objectives.reward import RewardObjective
from megatron_chimed.training.validation import validate
from tests.distributed import jobs
from tests.distributed.ranked import PACKS, Ranked, all_groups
from tests.distributed.test_reward import REWARD, make_reward
from tests.unit.training import run

OPTIONS = {"model": REWARD, "make_objective": make_reward, "samples": Ranked()}


def batch_of(*packs):
    samples = [Ranked()[pack] for pack in packs]
    return {
        key: torch.stack([torch.from_numpy(sample[key]) for sample in samples])
        for key in samples[0]
    }


def test_every_ordered_pair_of_a_group_is_found_with_its_margin():
    found = find_candidates(batch_of(0, 1))
    groups = all_groups()[:3]
    offset, expected = 0, []
    for _, answers, ranks, margins in groups:
        pairs = [
            (offset + w, offset + l, max(margins[w] - margins[l], 0.0))
            for w in range(len(answers))
            for l in range(len(answers))  # noqa: E741
            if ranks[w] < ranks[l]
        ]
        expected += [(*pair, 1 / len(pairs)) for pair in pairs]
        offset += len(answers)
    columns = (found.better, found.worse, found.margins, found.weights)
    ours = list(zip(*(column.tolist() for column in columns), strict=True))
    assert sorted(ours) == [pytest.approx(pair) for pair in sorted(expected)]
    assert len(expected) == 1 + 1 + 5, "a group of four with a tie has five pairs"
    assert int(found.num_groups) == 3
    assert found.rows.tolist() == [0] * 4 + [1] * 4


def objective_on(scores):
    """What the objective makes of scores of the candidates of a micro-batch, in order."""
    batch, objective = batch_of(0, 1, 2, 3), RewardObjective()
    found = find_candidates(batch)
    output = torch.full((jobs.SEQ_LENGTH, 4), 1e6)  # of other tokens: never read
    output[found.ends, found.rows] = scores
    loss_sum, count, metrics = objective.loss(output.requires_grad_(), batch)
    totals = engine.Totals(
        loss_sum=loss_sum.item(),
        count=int(count),
        metrics={name: float(metrics[name]) for name in objective.metric_names},
    )
    return objective, totals, found


def test_what_a_stage_reports_is_what_the_scores_say():
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(16, generator=generator)
    objective, totals, found = objective_on(scores)
    assert len(found.rows) == 16
    better, worse = scores[found.better], scores[found.worse]
    right = (better > worse).float()
    assert objective.averages(totals) == pytest.approx(
        {
            "pairs": len(found.better),
            "accuracy": right.mean().item(),
            "margin": (better - worse).mean().item(),
            "score_better": better.mean().item(),
            "score_worse": worse.mean().item(),
        }
    )
    assert totals.count == len(all_groups())
    bins = objective.details(totals)["calibration"]
    confidence = torch.sigmoid((better - worse).abs())
    for number, (pairs, sure, correct) in enumerate(bins):
        here = (confidence * 20).floor().clamp(max=19) == 10 + number
        assert (pairs, correct) == (int(here.sum()), right[here].sum().item())
        assert sure == pytest.approx(confidence[here].sum().item(), abs=1e-5)


def test_a_model_that_is_sure_falls_into_the_last_bin():
    objective, totals, _ = objective_on(torch.arange(16.0) * 1000)
    bins = objective.details(totals)["calibration"]
    assert sum(pairs for pairs, *_ in bins[:-1]) == 0
    assert bins[-1][0] == totals.metrics["pairs"]


@pytest.mark.parametrize("sizes", [(1, 4), (2, 6), (3, 3)])
def test_validation_counts_every_group_once(tmp_path, sizes):
    training = dict(zip(("micro_batch_size", "global_batch_size"), sizes, strict=True))
    with run.job(tmp_path, training=training, **OPTIONS) as job:
        totals = validate(job, Ranked())
    assert totals.count == len(all_groups()) == 7
    pairs = sum(
        sum(a < b for a in ranks for b in ranks) for pack in PACKS for _, _, ranks, _ in pack
    )
    assert totals.metrics["pairs"] == pairs


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_head_is_drawn_for_a_language_model_and_for_no_other(tmp_path, precision):
    training = {"precision": precision}
    with run.job(tmp_path / "lm", training=training) as job:
        language = run.weights(job)
        saved = state.save(job, "test")
    load = {"load": str(saved)}
    with run.job(tmp_path / "rm", training=training, checkpoint=load, **OPTIONS) as job:
        assert f"fresh {SCORE_KEY}, optimizer and data" in state.restore(job)
        assert job.chunks[0].score.weight.float().std() > 0.01
        drawn = run.weights(job)
        reward = state.save(job, "test")
    for key, tensor in language.items():
        if "lm_head" not in key:
            assert torch.equal(drawn[key], tensor), key
    if precision == "bf16":
        assert torch.equal(drawn[f"master.{SCORE_KEY}"], drawn[SCORE_KEY].float())
    load = {"load": str(reward)}
    training["seed"] = 7
    with run.job(tmp_path / "more", training=training, checkpoint=load, **OPTIONS) as job:
        assert "fresh" not in state.restore(job)
        assert torch.equal(job.chunks[0].score.weight, drawn[SCORE_KEY])
    with run.job(tmp_path / "text", training=training, checkpoint=load) as job:
        with pytest.raises(ConfigError, match="a reward model, which has no language-model head"):
            state.restore(job)


def test_a_head_that_was_lost_is_not_drawn_again(tmp_path):
    """A checkpoint that says it is a reward model, and has no head."""
    with run.job(tmp_path / "lm") as job:
        section = {**job.config.resolved["model"], "head": "score"}
        config = dataclasses.replace(job.config, resolved={"model": section})
        saved = state.save(dataclasses.replace(job, config=config), "test")
    with run.job(tmp_path / "rm", checkpoint={"load": str(saved)}, **OPTIONS) as job:
        with pytest.raises(CheckpointError, match=f"1 tensors are not in it: {SCORE_KEY}"):
            state.restore(job)


def test_scores_are_fp32_whatever_the_weights_are(tmp_path):
    with run.job(tmp_path, training={"precision": "bf16"}, **OPTIONS) as job:
        batch = batch_of(0)
        scores = job.objective.forward(batch, job.chunks[0])
    assert scores.dtype is torch.float32
    assert (scores != scores.bfloat16().float()).float().mean() > 0.9
