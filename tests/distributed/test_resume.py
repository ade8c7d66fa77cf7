"""A run that stops and goes on is the run that did not stop; at another layout, within 1e-5."""

import signal

import pytest
import torch

from tests.distributed import jobs
from tests.tiers import full_but

# name -> (parallel section, data-parallel size)
LAYOUTS = {
    "1 rank": (jobs.ONE, 1),
    "TP2": (jobs.TP2, 1),
    "TP2+SP": (jobs.TP2_SP, 1),
    "PP2": (jobs.PP2, 1),
    "PP2xVPP2": (jobs.PP2_VPP2, 1),
    "DP2": (jobs.ONE, 2),
    "DP2 distributed optimizer": (jobs.DP2_DISTRIBUTED, 2),
    "DP2 distributed optimizer, overlapped": (
        {**jobs.DP2_DISTRIBUTED, "overlap_grad_reduce": True, "overlap_param_gather": True},
        2,
    ),
    "TP2xPP2": ({**jobs.TP2, **jobs.PP2}, 1),
    "TP2+SPxDP2 distributed optimizer": ({**jobs.TP2_SP, **jobs.DP2_DISTRIBUTED}, 2),
}
KEPT = ("1 rank", "PP2xVPP2", "TP2xPP2", "TP2+SPxDP2 distributed optimizer")
STOP, END = 4, 8  # within the second and the third epoch


def run(pool, name, output_dir, **options):
    parallel, data_parallel_size = LAYOUTS[name]
    return pool.run(
        jobs.run,
        jobs.world_size(parallel, data_parallel_size),
        init=False,
        parallel=parallel,
        output_dir=str(output_dir),
        **options,
    )[0]


def steps(until):
    return {"train_steps": until}


def losses(records):
    return [record["loss"] for record in records]


@pytest.fixture(scope="module")
def stopped(gloo_pool, tmp_path_factory):
    """Runs stopped after `STOP` steps, one for each layout that is asked for."""
    made = {}

    def make(name, **options):
        key = (name, repr(options))
        if key not in made:
            folder = tmp_path_factory.mktemp("stopped")
            training = {**steps(STOP), **options.get("training", {})}
            run(gloo_pool, name, folder, **{**options, "training": training})
            made[key] = folder / "checkpoints" / f"iter_{STOP:07d}"
        return made[key]

    return make


@pytest.mark.parametrize(
    "name", full_but([*KEPT[1:], "DP2 distributed optimizer, overlapped"], LAYOUTS)
)
def test_the_same_layout_resumes_bit_for_bit_with_dropout(gloo_pool, tmp_path, name):
    model = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
    whole = run(gloo_pool, name, tmp_path / "whole", model=model, training=steps(END))
    first = run(gloo_pool, name, tmp_path / "parts", model=model, training=steps(STOP))
    second = run(gloo_pool, name, tmp_path / "parts", model=model, training=steps(END))
    assert losses(first + second) == losses(whole)
    assert [r["grad_norm"] for r in first + second] == [r["grad_norm"] for r in whole]
    ends = [tmp_path / part / f"checkpoints/iter_{END:07d}" for part in ("whole", "parts")]
    assert_same_tensors(*ends)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("1 rank", signal.SIGTERM),
        pytest.param("TP2+SP", signal.SIGTERM, marks=pytest.mark.full),
        ("TP2+SP", signal.SIGINT),
        pytest.param("PP2", signal.SIGINT, marks=pytest.mark.full),
    ],
)
def test_a_preempted_run_goes_on_bit_for_bit(gloo_pool, tmp_path, uninterrupted, name, number):
    """One rank is asked to stop; all save the same step, end alike, and the run goes on."""
    parallel, data_parallel_size = LAYOUTS[name]
    if name == "1 rank":
        whole = uninterrupted[:6]
    else:
        whole = losses(run(gloo_pool, name, tmp_path / "whole", training=steps(6)))
    answers = gloo_pool.run(
        jobs.run_preempted,
        jobs.world_size(parallel, data_parallel_size),
        init=False,
        at_step=3,
        number=number,
        parallel=parallel,
        output_dir=str(tmp_path / "parts"),
        training=steps(6),
    )
    for message, _ in answers:
        how = "stopped by Ctrl-C" if number == signal.SIGINT else "preempted by SIGTERM"
        assert message.startswith(f"{how}: step 3 is saved in ")
    second = run(gloo_pool, name, tmp_path / "parts", training=steps(6))
    assert losses(answers[0][1] + second) == whole


@pytest.mark.parametrize("name", ["PP2xVPP2", "DP2 distributed optimizer, overlapped"])
def test_validating_on_the_way_changes_nothing(gloo_pool, tmp_path, name):
    plain = run(gloo_pool, name, tmp_path / "plain", training=steps(STOP))
    often = {**steps(STOP), "eval_interval": 2}
    looked = run(gloo_pool, name, tmp_path / "looked", training=often)
    assert losses(looked) == losses(plain)
    ends = [tmp_path / run_ / f"checkpoints/iter_{STOP:07d}" for run_ in ("plain", "looked")]
    assert_same_tensors(*ends)


@pytest.fixture(scope="module")
def uninterrupted(gloo_pool, tmp_path_factory):
    return losses(run(gloo_pool, "1 rank", tmp_path_factory.mktemp("whole"), training=steps(END)))


@pytest.mark.t_way(1)
@pytest.mark.parametrize("after", full_but(KEPT, LAYOUTS))
@pytest.mark.parametrize("before", ["1 rank", "TP2+SPxDP2 distributed optimizer"])
def test_another_layout_goes_on_alike(gloo_pool, tmp_path, stopped, uninterrupted, before, after):
    copy_checkpoint(stopped(before), tmp_path)
    resumed = losses(run(gloo_pool, after, tmp_path, training=steps(END)))
    assert len(resumed) == END - STOP
    for ours, theirs in zip(resumed, uninterrupted[STOP:], strict=True):
        assert abs(ours - theirs) <= 1e-5 * max(1.0, abs(theirs))


@pytest.mark.t_way(1)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", full_but(KEPT, LAYOUTS))
def test_loading_and_saving_changes_no_bit(gloo_pool, tmp_path, stopped, name, precision):
    training = {"precision": precision}
    source = stopped("DP2 distributed optimizer", training=training)
    parallel, data_parallel_size = LAYOUTS[name]
    (again, *_) = gloo_pool.run(
        jobs.load_and_save,
        jobs.world_size(parallel, data_parallel_size),
        init=False,
        parallel=parallel,
        source=str(source),
        output_dir=str(tmp_path),
        training=training,
    )
    assert_same_tensors(source, again)


@pytest.mark.t_way(1)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["1 rank", "DP2 distributed optimizer, overlapped"])
def test_an_offloaded_optimizer_changes_no_bit_and_may_be_switched(
    gloo_pool, tmp_path, stopped, name, precision
):
    """The end is offloaded in one run and not in the other; both start from a plain checkpoint."""
    training = {"precision": precision}
    source = stopped(name, training=training)
    training |= steps(6)
    for folder, offload in (("plain", False), ("offloaded", True)):
        (tmp_path / folder).mkdir()
        copy_checkpoint(source, tmp_path / folder)
        optim = {"offload": offload}
        run(gloo_pool, name, tmp_path / folder, training=training, optim=optim)
        # And back: what an offloaded run saved, a plain one loads.
        optim = {"offload": False}
        run(gloo_pool, name, tmp_path / folder, training=training | steps(END), optim=optim)
    ends = [tmp_path / part / f"checkpoints/iter_{END:07d}" for part in ("plain", "offloaded")]
    assert_same_tensors(*ends)


def assert_same_tensors(left, right):
    left, right = jobs.torch_tensors(str(left)), jobs.torch_tensors(str(right))
    assert left.keys() == right.keys()
    assert any(key.startswith("exp_avg_sq.") for key in left)
    for key, tensor in left.items():
        assert tensor.dtype == right[key].dtype
        assert torch.equal(tensor, right[key]), key


def copy_checkpoint(source, output_dir):
    import shutil

    shutil.copytree(source, output_dir / "checkpoints" / source.name)
