"""The sampling functions against transformers' processors, and the draw against its own law."""

import math

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.errors import ConfigError
from megatron_chimed.generation.sampling import (
    Sampler,
    draw,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    prompt_seed,
    uniform_draws,
)

CPU = torch.device("cpu")


def started(config, prompts, seeds, vocab_size=97):
    """A sampler with a row in each slot."""
    sampler = Sampler(config, len(prompts), vocab_size=vocab_size, device=CPU)
    for slot, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        sampler.start(slot, prompt, seed)
    return sampler


def pick(sampler, logits, step):
    rows = len(logits)
    return sampler.pick(logits, range(rows), [step] * rows).tolist()


@pytest.fixture
def logits():
    return 3 * torch.randn(5, 97, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def ids():
    return torch.randint(97, (5, 12), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("penalty", [0.8, 1.0, 1.3])
def test_repetition_penalty_is_transformers(logits, ids, penalty):
    seen = torch.zeros(5, 97, dtype=torch.bool).scatter_(1, ids, True)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits)
    assert torch.equal(penalize_repetition(logits, seen, penalty), expected)


@pytest.mark.parametrize("k", [1, 2, 50, 97, 1000])
def test_top_k_is_transformers(logits, ids, k):
    assert torch.equal(keep_top_k(logits, k), TopKLogitsWarper(k)(ids, logits))


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p_is_transformers(logits, ids, p):
    assert torch.equal(keep_top_p(logits, p), TopPLogitsWarper(p)(ids, logits))


def test_top_p_keeps_ties_whatever_their_order():
    logits = torch.tensor([[0.0, 5.0, 0.0, 5.0, 5.0]])
    assert keep_top_p(logits, 0.5).isfinite().tolist() == [[False, True, False, True, True]]


def test_all_together_keep_the_order_of_transformers(logits, ids):
    config = SamplingConfig(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.2)
    expected = RepetitionPenaltyLogitsProcessor(1.2)(ids, logits)
    for warper in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(20), TopPLogitsWarper(0.8)):
        expected = warper(ids, expected)
    possible = [set(row.isfinite().nonzero().squeeze(-1).tolist()) for row in expected]
    drawn = [set() for _ in possible]
    for seed in range(300):
        sampler = started(config, ids.tolist(), [seed] * 5)
        for found, token in zip(drawn, pick(sampler, logits, 0), strict=True):
            found.add(token)
    assert all(found <= allowed for found, allowed in zip(drawn, possible, strict=True))
    assert any(len(found) > 3 for found in drawn)


def test_penalty_counts_drawn_tokens_too():
    config = SamplingConfig(repetition_penalty=10.0)
    sampler = started(config, [[0]], [1], vocab_size=4)
    logits = torch.tensor([[9.0, 5.0, 4.0, 3.0]])
    assert [pick(sampler, logits, step)[0] for step in range(4)] == [1, 2, 3, 0]


def test_a_slot_forgets_the_row_before():
    config = SamplingConfig(repetition_penalty=10.0)
    sampler = started(config, [[0, 1]], [1], vocab_size=4)
    sampler.start(0, [3], 1)
    assert pick(sampler, torch.tensor([[9.0, 5.0, 4.0, 3.0]]), 0) == [0]


def test_draws_follow_the_probabilities():
    probabilities = torch.tensor([0.1, 0.0, 0.25, 0.6, 0.05])
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    tokens = draw(probabilities.log().expand(10_000, -1), uniform)
    counts = torch.bincount(tokens, minlength=5) / 10_000
    assert torch.allclose(counts, probabilities, atol=2e-4)


def test_impossible_tokens_are_never_drawn_at_the_ends():
    logits = torch.full((2, 6), -math.inf)
    logits[:, 2:4] = torch.tensor([0.0, 1.0])
    below_one = 1 - 2.0**-52
    assert draw(logits, torch.tensor([0.0, below_one], dtype=torch.float64)).tolist() == [2, 3]


def test_a_row_draws_alone(logits):
    config = SamplingConfig(temperature=1.0)
    seeds = [10, 11, 12, 13, 14]
    together = started(config, [[1]] * 5, seeds)
    alone = started(config, [[1]], [12])
    drawn = set()
    for step in range(20):
        token = pick(together, logits, step)[2]
        assert pick(alone, logits[2:3], step) == [token]
        drawn.add(token)
    assert len(drawn) > 3


def test_uniform_draws_are_splitmix64():
    """The first outputs of the reference implementation's generator for seed 1234567."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    found = uniform_draws(np.full(3, 1234567, np.uint64), [0, 1, 2])
    assert found.tolist() == [(x >> 12) / 2.0**52 for x in expected]


def test_uniform_draws_are_uniform():
    draws = uniform_draws(np.arange(100_000, dtype=np.uint64), [7] * 100_000)
    assert draws.min() >= 0 and draws.max() < 1
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert abs(counts - 5000).max() < 5 * 5000**0.5
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.02


def test_prompt_seeds_differ_and_stay():
    seeds = {prompt_seed(seed, i, j) for seed in range(3) for i in range(20) for j in range(20)}
    assert len(seeds) == 1200
    assert prompt_seed(0, 1, 11) != prompt_seed(0, 11, 1)
    assert prompt_seed(0, 0) == 3515856193555864121, "a release must not change samples silently"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0: .*1 or more"),
        ({"temperature": -0.1}, "temperature is -0.1: .*0 for greedy"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1: .*0 .off"),
        ({"top_p": 0.0}, "top_p is 0.0: it is a probability"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0: .*Set 1"),
        ({"stop_strings": ("a", "")}, "a stop string is empty"),
    ],
)
def test_wrong_settings_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**setting)
