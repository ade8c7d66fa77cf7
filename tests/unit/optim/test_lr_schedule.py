"""The schedule against transformers' and torch's, and its own promises at both ends."""

import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch.optim.lr_scheduler import CosineAnnealingLR
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from megatron_chimed.config.optim import OptimConfig
from megatron_chimed.errors import ConfigError
from megatron_chimed.optim import learning_rate


def rates(config, total_steps):
    return [
        learning_rate(config, step=s, total_steps=total_steps) for s in range(1, total_steps + 1)
    ]


def reference_rates(make_schedule, total_steps):
    """Rates of a torch scheduler for steps 1..n: before any step it stands at step 0."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(optimizer)
    found = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        for _ in range(total_steps):
            schedule.step()
            found.append(schedule.get_last_lr()[0])
    return found


@pytest.mark.parametrize(
    ("name", "reference"),
    [("cosine", get_cosine_schedule_with_warmup), ("linear", get_linear_schedule_with_warmup)],
)
@pytest.mark.parametrize("warmup_steps", [0, 1, 10])
def test_shapes_are_those_of_transformers(name, reference, warmup_steps):
    """Theirs falls to 0 from a peak of 1, at step n where we are: min + (peak - min) x theirs."""
    total_steps, peak, lowest = 100, 3e-4, 1e-5
    config = OptimConfig(lr=peak, min_lr=lowest, lr_schedule=name, warmup_steps=warmup_steps)
    theirs = reference_rates(lambda o: reference(o, warmup_steps, total_steps), total_steps)
    expected = [
        peak * rate if step <= warmup_steps else lowest + (peak - lowest) * rate
        for step, rate in enumerate(theirs, start=1)
    ]
    assert rates(config, total_steps) == pytest.approx(expected, rel=1e-9)


def test_cosine_is_torchs_annealing():
    total_steps = 64
    config = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=0)
    theirs = reference_rates(
        lambda o: CosineAnnealingLR(o, T_max=total_steps, eta_min=0.1), total_steps
    )
    assert rates(config, total_steps) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("shape", ["linear", "minus_sqrt", "cosine"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_wsd_is_megatrons(shape, warmup):
    """Their `get_lr` at step n, of a schedule that has no optimizer."""
    total_steps, decay_steps = 100, 30
    theirs = OptimizerParamScheduler(
        SimpleNamespace(param_groups=[]),
        init_lr=0.0,
        max_lr=3e-4,
        min_lr=1e-5,
        lr_warmup_steps=warmup,
        lr_decay_steps=total_steps,
        lr_decay_style="WSD",
        start_wd=0.0,
        end_wd=0.0,
        wd_incr_steps=total_steps,
        wd_incr_style="constant",
        wsd_decay_steps=decay_steps,
        lr_wsd_decay_style=shape,
    )
    expected = []
    for _ in range(total_steps):
        theirs.step(1)
        expected.append(theirs.get_lr({}))
    config = OptimConfig(
        lr=3e-4,
        min_lr=1e-5,
        lr_schedule="wsd",
        warmup_steps=warmup,
        decay_steps=decay_steps,
        decay_shape=shape,
    )
    assert rates(config, total_steps) == pytest.approx(expected, rel=1e-9)


def test_wsd_decays_over_a_share_of_the_steps_and_never_before_the_warmup_ends():
    by_fraction = OptimConfig(lr_schedule="wsd", decay_fraction=0.25, warmup_steps=5)
    by_steps = OptimConfig(lr_schedule="wsd", decay_fraction=1.0, decay_steps=10, warmup_steps=5)
    assert rates(by_fraction, 40) == rates(by_steps, 40)
    assert rates(by_steps, 40)[4:30] == [1e-4] * 26
    long = OptimConfig(lr_schedule="wsd", decay_steps=99, warmup_steps=20)
    linear = OptimConfig(lr_schedule="linear", warmup_steps=20)
    assert rates(long, 40) == rates(linear, 40)


def test_constant_stays_at_the_peak():
    config = OptimConfig(lr=2e-4, lr_schedule="constant", warmup_steps=4)
    assert rates(config, 8) == pytest.approx([0.5e-4, 1e-4, 1.5e-4, 2e-4, 2e-4, 2e-4, 2e-4, 2e-4])


@pytest.mark.parametrize(
    ("fraction", "total_steps", "warmup"), [(0.01, 300, 3), (0.01, 250, 3), (0.5, 10, 5), (0, 9, 0)]
)
def test_warmup_fraction_is_rounded_up(fraction, total_steps, warmup):
    by_fraction = OptimConfig(warmup_fraction=fraction)
    by_steps = OptimConfig(warmup_fraction=0.9, warmup_steps=warmup)  # steps win
    assert rates(by_fraction, total_steps) == rates(by_steps, total_steps)


@settings(deadline=None)
@given(
    schedule=st.sampled_from(["cosine", "linear", "wsd"]),
    total_steps=st.integers(2, 400),
    share=st.floats(0, 0.9),
    peak=st.floats(1e-6, 1e-2),
    lowest=st.floats(0, 1),
)
def test_it_rises_then_falls_to_the_final_rate(schedule, total_steps, share, peak, lowest):
    warmup = int(share * (total_steps - 1))
    config = OptimConfig(lr=peak, min_lr=lowest * peak, lr_schedule=schedule, warmup_steps=warmup)
    found = rates(config, total_steps)
    assert all(0 < a <= b for a, b in zip(found[:warmup], found[1:warmup], strict=False))
    falling = found[max(warmup - 1, 0) :]
    # Where the lowest rate is the peak, equal rates may differ in the last bit.
    assert all(a >= b * (1 - 1e-12) for a, b in zip(falling, falling[1:], strict=False))
    assert found[-1] == pytest.approx(lowest * peak, rel=1e-9, abs=1e-18)
    assert max(found) <= peak * (1 + 1e-12)
    if warmup:
        assert found[warmup - 1] == pytest.approx(peak, rel=1e-12)


def test_it_is_a_function_of_the_step_alone():
    config = OptimConfig()
    whole = rates(config, 50)
    assert [learning_rate(config, step=s, total_steps=50) for s in (50, 7, 23)] == [
        whole[49],
        whole[6],
        whole[22],
    ]


def test_a_step_past_the_end_stays_at_the_final_rate():
    assert learning_rate(OptimConfig(), step=120, total_steps=100) == 1e-5


def test_defaults_are_those_of_ziya2():
    config = OptimConfig()
    assert (config.adam_beta1, config.adam_beta2) == (0.9, 0.95)
    assert (config.weight_decay, config.clip_grad) == (0.1, 1.0)
    assert (config.warmup_fraction, config.min_lr) == (0.01, 1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 1e-5, "min_lr": 1e-4}, "--optim.lr is 1e-05 and --optim.min_lr 0.0001"),
        ({"lr": -1.0}, "0 <= min_lr <= lr"),
        ({"lr": math.nan}, "--optim.lr is nan"),
        ({"lr": math.inf}, "--optim.lr is inf"),
        ({"min_lr": math.nan}, "--optim.min_lr nan"),
        ({"warmup_fraction": 1.0}, "--optim.warmup_fraction is 1.0"),
        ({"adam_beta1": -0.1}, "--optim.adam_beta1 is -0.1"),
        ({"adam_beta2": 1.0}, "--optim.adam_beta2 is 1.0: set it in [0, 1)"),
        ({"adam_beta2": math.nan}, "--optim.adam_beta2 is nan"),
        ({"weight_decay": -0.1}, "--optim.weight_decay is -0.1: set it to 0 or more"),
        ({"clip_grad": math.inf}, "--optim.clip_grad is inf"),
        ({"adam_eps": 0.0}, "--optim.adam_eps is 0.0: set it above 0"),
        ({"adam_eps": math.nan}, "--optim.adam_eps is nan"),
        ({"warmup_steps": -1}, "--optim.warmup_steps is -1"),
        ({"decay_steps": 0}, "--optim.decay_steps is 0: set it to 1 or more"),
        ({"decay_fraction": 0.0}, "--optim.decay_fraction is 0.0: set it above 0"),
        ({"decay_fraction": 1.5}, "--optim.decay_fraction is 1.5"),
    ],
)
def test_a_value_out_of_range_is_named(fields, message):
    with pytest.raises(ConfigError) as caught:
        OptimConfig(**fields)
    assert message in str(caught.value)
