"""LoRA: on every layout the adapters have the gradients that plain torch gives them, and nothing
else moves."""

import contextlib
import functools
import itertools
import zlib
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from megatron_chimed.checkpoint.reader import open_checkpoint
from megatron_chimed.config.dpo import DPOConfig
from megatron_chimed.errors import ConfigError
from megatron_chimed.generation import SamplingConfig, generate, live_session
from megatron_chimed.model import shard_specs, weight_shards
from megatron_chimed.training import state
from megatron_chimed.training.objectives.dpo import DPOObjective
from megatron_chimed.training.objectives.reward import RewardObjective
from tests.distributed import jobs, ranked
from tests.distributed.test_dpo import WithReference
from tests.distributed.test_layouts import assert_gradients_agree, assert_traces_agree
from tests.tiers import full_but

LORA = {"rank": 4, "alpha": 6.0}
SCALE = 1.5
SOME = {"targets": ("q_proj", "v_proj", "down_proj")}
FULL, SELECTIVE = {"recompute": "full"}, {"recompute": "selective"}
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}
STEPS = 3

# name -> (parallel section, data-parallel size, model section, lora section)
LAYOUTS = {
    "1 rank, full recompute": (jobs.ONE, 1, FULL, {}),
    "1 rank, selective recompute, chunked": (
        jobs.ONE,
        1,
        {**SELECTIVE, "loss_chunk_tokens": 13},
        {},
    ),
    "TP2": (jobs.TP2, 1, {}, {}),
    "TP2+SP, selective recompute": (jobs.TP2_SP, 1, SELECTIVE, {}),
    "TP2+SP, some targets": (jobs.TP2_SP, 1, SELECTIVE, SOME),
    "PP2": (jobs.PP2, 1, FULL, {}),
    "PP2xVPP2": (jobs.PP2_VPP2, 1, {}, {}),
    "DP2": (jobs.ONE, 2, {}, {}),
    "DP2, distributed optimizer": ({**jobs.DP2_DISTRIBUTED, **OVERLAP}, 2, {}, {}),
    "TP2xPP2": ({**jobs.TP2, **jobs.PP2}, 1, {}, {}),
    "TP2xPP2+SP": ({**jobs.TP2_SP, **jobs.PP2}, 1, FULL, {}),
}


class Prose:
    """Random tokens as in `jobs.RandomSamples`, four to an epoch."""

    samples_per_epoch = 4

    def __getitem__(self, index):
        return jobs.RandomSamples()[index % self.samples_per_epoch]

    def locate(self, index):
        return f"sample {index}"


def make_reward(token_loss):
    return RewardObjective()


def make_dpo(token_loss):
    return DPOObjective(token_loss, DPOConfig(beta=0.1))


BATCH = {"micro_batch_size": 1, "global_batch_size": 4}
REWARD = {"make_objective": make_reward, "model": {"head": "score"}}


@pytest.fixture(scope="module")
def stages(gloo_pool):
    """Options of each stage's jobs; DPO's reference is the model without adapters."""
    (base,) = gloo_pool.run(ranked.whole_weights, 1, init=False, parallel=jobs.ONE)
    answers = WithReference(ranked.log_probs(base))
    return {
        "sft": {"samples": Prose(), "training": BATCH | {"micro_batch_size": 2}},
        "reward": {"samples": ranked.Ranked(), "training": BATCH, **REWARD},
        "dpo": {"samples": answers, "training": BATCH, "make_objective": make_dpo},
    }


@contextlib.contextmanager
def moved_adapters():
    """Jobs start with adapters that add something, as after some training."""
    draw = state.draw_weights

    def draw_and_move(job):
        draw(job)
        for shard in weight_shards(job.chunks):
            if shard.key.endswith("lora_B.weight"):
                generator = torch.Generator().manual_seed(zlib.crc32(shard.key.encode()))
                whole = torch.randn(shard.global_shape, generator=generator)
                first, rows = shard.offset[0], shard.tensor.shape[0]
                shard.tensor.copy_(0.05 * whole[first : first + rows])
        job.optimizer.reset_master_weights()

    with mock.patch.object(state, "draw_weights", draw_and_move):
        yield


def trace(rank, world_size, store_path, **options):
    with moved_adapters():
        return jobs.trace(rank, world_size, store_path, **options)


def weights_of(rank, world_size, store_path, **options):
    """The weights of a job by name, and the names of those that have a gradient buffer."""
    with moved_adapters():
        job = jobs.make_job(rank, world_size, store_path, **options)
    try:
        weights = {shard.key: shard.tensor.clone() for shard in weight_shards(job.chunks)}
        buffered = {
            spec.key
            for parameter, specs in shard_specs(job.chunks).items()
            if hasattr(parameter, "main_grad")
            for spec in specs
        }
        return weights, buffered
    finally:
        jobs.engine.leave()


@pytest.fixture(scope="module")
def one_rank(gloo_pool, stages):
    """Weights, buffered names, and a trace of one rank, by stage and lora section."""

    @functools.cache
    def make(stage, some=False):
        lora = LORA | (SOME if some else {})
        options = {"init": False, "parallel": jobs.ONE, "lora": lora} | stages[stage]
        ((weights, buffered),) = gloo_pool.run(weights_of, 1, **options)
        (result,) = gloo_pool.run(trace, 1, steps=STEPS, look_at=(1, STEPS), **options)
        return weights, buffered, result

    return make


def token_loss(weights):
    """Mean cross-entropy of the counted tokens of `Prose`, and the gradients by name."""
    model = ranked.reference_model(LlamaForCausalLM, weights)
    total, count = 0.0, 0
    for index in range(Prose.samples_per_epoch):
        sample = {name: torch.from_numpy(array) for name, array in Prose()[index].items()}
        logits = model(sample["tokens"][None]).logits[0]
        losses = F.cross_entropy(logits, sample["labels"], reduction="none")
        total, count = total + losses @ sample["loss_mask"], count + sample["loss_mask"].sum()
    return ranked._mean_and_gradients([total / count], model)


@pytest.mark.parametrize(
    ("stage", "some"),
    full_but(
        [("sft", False), ("sft", True), ("reward", False), ("dpo", False)],
        itertools.product(["sft", "reward", "dpo"], [False, True]),
    ),
)
def test_loss_and_gradients_are_those_of_merged_weights_in_plain_torch(one_rank, stage, some):
    weights, buffered, result = one_rank(stage, some)
    merged = ranked.merge(weights, SCALE)
    if stage == "sft":
        loss, gradients = token_loss(merged)
    elif stage == "reward":
        loss, gradients = ranked.reward_loss(merged)
    else:
        base = {key: tensor for key, tensor in weights.items() if "lora" not in key}
        loss, gradients = ranked.dpo_loss(merged, base, beta=0.1)
    assert result["losses"][0] == pytest.approx(loss, rel=1e-5)
    expected = ranked.adapter_gradients(weights, gradients, SCALE)
    assert len(expected) == (3 if some else 7) * 2 * 4 + (stage == "reward")
    assert buffered == expected.keys(), "frozen weights have no gradient buffer"
    assert_gradients_agree(jobs.assemble([result["gradients"][1]]), expected)


@pytest.mark.parametrize(
    ("stage", "name"),
    full_but(
        [
            ("sft", "1 rank, selective recompute, chunked"),
            ("sft", "TP2+SP, some targets"),
            ("sft", "PP2xVPP2"),
            ("sft", "DP2, distributed optimizer"),
            ("sft", "TP2xPP2+SP"),
            ("reward", "TP2xPP2"),
            ("dpo", "TP2+SP, selective recompute"),
            ("dpo", "DP2"),
        ],
        [("sft", name) for name in LAYOUTS]
        + [
            (stage, name)
            for stage in ("reward", "dpo")
            for name in ("TP2", "TP2+SP, selective recompute", "PP2", "DP2", "TP2xPP2")
        ],
    ),
)
def test_a_layout_trains_like_one_rank(gloo_pool, stages, one_rank, stage, name):
    parallel, data_parallel_size, model, lora = LAYOUTS[name]
    _, _, expected = one_rank(stage, bool(lora))
    options = stages[stage] | {"model": stages[stage].get("model", {}) | model}
    results = gloo_pool.run(
        trace,
        jobs.world_size(parallel, data_parallel_size),
        init=False,
        parallel=parallel,
        lora=LORA | lora,
        steps=STEPS,
        look_at=(1, STEPS),
        **options,
    )
    for result in results:
        assert_traces_agree(result, expected)
    for step in (1, STEPS):
        assert_gradients_agree(
            jobs.assemble([result["gradients"][step] for result in results]),
            jobs.assemble([expected["gradients"][step]]),
        )


def test_dropout_leaves_what_ranks_hold_in_common_equal(gloo_pool, stages):
    """`assemble` compares the ranks' copies of a gradient bit by bit."""
    options = {"init": False, "parallel": jobs.TP2, "lora": LORA | {"dropout": 0.3}}
    results = gloo_pool.run(trace, 2, steps=2, look_at=(1, 2), **options, **stages["sft"])
    for step in (1, 2):
        jobs.assemble([result["gradients"][step] for result in results])


def generate_live(rank, world_size, store_path, **options):
    """Greedy completions by the weights of a job."""
    with moved_adapters():
        job = jobs.make_job(rank, world_size, store_path, **options)
    try:
        with live_session(job.chunks, job.ranks) as session:
            found = generate(session, [[3], [5, 200, 12]], SamplingConfig(max_new_tokens=12))
        return [completion.token_ids for completion in found]
    finally:
        jobs.engine.leave()


def test_a_running_job_generates_with_its_adapters(gloo_pool):
    found = [
        gloo_pool.run(generate_live, size, init=False, parallel=parallel, lora=lora)
        for size, parallel, lora in ((1, jobs.ONE, LORA), (2, jobs.TP2_SP, LORA), (1, jobs.ONE, {}))
    ]
    assert found[0] * 2 == found[1] != found[2] * 2


# name -> (parallel section, data-parallel size, model section)
RESUMED = {
    "1 rank": (jobs.ONE, 1, FULL),
    "TP2+SP": (jobs.TP2_SP, 1, SELECTIVE),
    "DP2, distributed optimizer": ({**jobs.DP2_DISTRIBUTED, **OVERLAP}, 2, {}),
    "TP2xPP2": ({**jobs.TP2, **jobs.PP2}, 1, {}),
}


def run(pool, name, folder, steps, **options):
    parallel, data_parallel_size, model = RESUMED[name]
    options = {"lora": LORA, "model": model, "samples": Prose()} | options
    options["training"] = BATCH | {"train_steps": steps} | options.get("training", {})
    return pool.run(
        jobs.run,
        jobs.world_size(parallel, data_parallel_size),
        init=False,
        parallel=parallel,
        output_dir=str(folder),
        **options,
    )[0]


def losses(records):
    return [record["loss"] for record in records]


def saved(folder, step):
    return jobs.torch_tensors(str(folder / f"checkpoints/iter_{step:07d}"))


@pytest.mark.parametrize("name", full_but(["TP2xPP2"], RESUMED))
def test_a_run_resumes_bit_for_bit_and_frozen_weights_stay(gloo_pool, one_rank, tmp_path, name):
    """With dropout, whose masks are the layout's."""
    dropout = {"lora": LORA | {"dropout": 0.1}}
    whole = run(gloo_pool, name, tmp_path / "whole", 4, **dropout)
    first = run(gloo_pool, name, tmp_path / "parts", 2, **dropout)
    second = run(gloo_pool, name, tmp_path / "parts", 4, **dropout)
    assert losses(first + second) == losses(whole)
    ends = [saved(tmp_path / part, 4) for part in ("whole", "parts")]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(tensor, ends[1][key]) for key, tensor in ends[0].items())
    start = one_rank("sft")[0]
    frozen = {key for key in start if "lora" not in key}
    assert all(torch.equal(ends[0][key], start[key]) for key in frozen)
    trained = start.keys() - frozen
    moments = {f"{name}.{key}" for key in trained for name in ("exp_avg", "exp_avg_sq")}
    assert ends[0].keys() == start.keys() | moments
    assert all(ends[0][key].any() for key in trained)


@pytest.fixture(scope="module")
def five_steps(gloo_pool, tmp_path_factory):
    """Losses at one rank."""
    return losses(run(gloo_pool, "1 rank", tmp_path_factory.mktemp("five"), 5))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("TP2xPP2", "DP2, distributed optimizer"),
        pytest.param("1 rank", "TP2+SP", marks=pytest.mark.full),
    ],
)
def test_another_layout_goes_on_alike(gloo_pool, tmp_path, five_steps, before, after):
    run(gloo_pool, before, tmp_path / "parts", 3)
    resumed = losses(run(gloo_pool, after, tmp_path / "parts", 5))
    assert resumed == pytest.approx(five_steps[3:], rel=1e-5)


def test_half_precision_keeps_fp32_adapters(gloo_pool, tmp_path, five_steps):
    half = {"training": {"precision": "bf16"}}
    first = losses(run(gloo_pool, "TP2+SP", tmp_path / "half", 3, **half))
    assert first == pytest.approx(five_steps[:3], rel=0.01)
    masters = {key for key in saved(tmp_path / "half", 3) if key.startswith("master.")}
    assert len(masters) == 7 * 2 * 4
    assert all("lora" in key for key in masters)


@pytest.fixture(scope="module")
def three_steps(gloo_pool, tmp_path_factory):
    """A run of three steps whose adapters add much, and the loss of its fourth step."""
    folder = tmp_path_factory.mktemp("three")
    quick = {"optim": {"lr": 0.05, "min_lr": 0.05}}
    first, *_ = losses(run(gloo_pool, "1 rank", folder, 3, **quick))
    (loss,) = losses(run(gloo_pool, "1 rank", folder, 4, **quick))
    assert abs(first - loss) > 0.01, "they would not be missed"
    return folder / "checkpoints/iter_0000003", loss


@pytest.mark.parametrize(
    ("name", "lora"), [("1 rank", {}), ("TP2xPP2", {"rank": 2, "targets": ("o_proj",)})]
)
def test_what_starts_from_adapters_has_them_merged(gloo_pool, tmp_path, three_steps, name, lora):
    """Trained on in full, or with other adapters."""
    checkpoint, fourth_loss = three_steps
    start = {"checkpoint": {"load": str(checkpoint)}, "lora": lora}
    (found,) = losses(run(gloo_pool, name, tmp_path / "next", 1, **start))
    assert found == pytest.approx(fourth_loss, rel=1e-5)


def refusal(rank, world_size, store_path, *, source, **options):
    """Why a job does not resume `source`."""
    job = jobs.make_job(rank, world_size, store_path, **options)
    try:
        state._resume(job, open_checkpoint(source, agreement=job.agreement))
    except ConfigError as error:
        return str(error)
    finally:
        jobs.engine.leave()


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({}, "no adapters"),
        (LORA | {"alpha": 8.0}, "adapters of rank 4 with alpha 8 on down_proj, gate_proj"),
        (LORA | SOME, "alpha 6 on down_proj, q_proj, v_proj"),
        (LORA | {"dropout": 0.5}, None),  # goes on
    ],
)
def test_a_run_does_not_go_on_with_other_adapters(gloo_pool, three_steps, lora, said):
    options = {"parallel": jobs.ONE, "source": str(three_steps[0]), "init": False}
    (message,) = gloo_pool.run(refusal, 1, lora=lora, **options)
    if said is None:
        assert message is None
        return
    then, _, now = message.partition("but the config now has ")
    assert "has adapters of rank 4 with alpha 6 on down_proj, gate_proj, k_proj" in then
    assert said in now
    assert "Set the lora section back, or start a new run from its weights" in now
