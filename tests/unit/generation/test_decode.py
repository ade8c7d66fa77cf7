"""Decoding on one rank against transformers: same tokens, same ends, clear errors."""

import dataclasses
import math

import pytest
import torch

from megatron_chimed.errors import ConfigError, DataError, NumericError
from megatron_chimed.generation import SamplingConfig, cache_bytes, decode, generate
from megatron_chimed.model import KVCache
from tests.unit.generation import toy

GREEDY = SamplingConfig(max_new_tokens=64)
SAMPLED = SamplingConfig(
    max_new_tokens=24, temperature=0.9, top_k=40, top_p=0.95, repetition_penalty=1.2, seed=5
)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    checkpoint = toy.save_reference(tmp_path_factory.mktemp("reference"))
    with toy.toy_session(checkpoint) as session:
        yield session


def tokens_of(completions):
    return [completion.token_ids for completion in completions]


@pytest.fixture(scope="module")
def expected():
    return [toy.reference_completion(prompt, 64) for prompt in toy.PROMPTS]


@pytest.mark.parametrize("prefill_tokens", [2048, 12])
def test_greedy_equals_transformers_row_by_row(session, expected, monkeypatch, prefill_tokens):
    # 12 tokens for 4 rows cut the prompts into parts of 3.
    monkeypatch.setattr(decode, "PREFILL_TOKENS", prefill_tokens)
    completions = generate(session, toy.PROMPTS, GREEDY)
    assert tokens_of(completions) == expected
    assert {completion.finish_reason for completion in completions} == {"length"}


def test_repetition_penalty_equals_transformers(session):
    prompt = toy.PROMPTS[2]
    out = toy.reference_model().generate(
        torch.tensor([prompt]),
        max_new_tokens=32,
        do_sample=False,
        repetition_penalty=1.5,
        pad_token_id=0,
    )
    config = SamplingConfig(max_new_tokens=32, repetition_penalty=1.5)
    (completion,) = generate(session, [prompt], config)
    assert completion.token_ids == tuple(out[0, len(prompt) :].tolist())


@pytest.mark.parametrize("config", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_result_does_not_depend_on_the_batch(session, config):
    whole = generate(session, toy.PROMPTS, config, batch_size=4)
    assert generate(session, toy.PROMPTS, config, batch_size=3) == whole
    assert generate(session, toy.PROMPTS, config, batch_size=1) == whole


def test_seed_decides_the_sample(session):
    prompts = [toy.PROMPTS[1]] * 2
    first, second = tokens_of(generate(session, prompts, SAMPLED))
    assert first != second, "two candidates of one prompt must differ"
    same = generate(session, prompts, SAMPLED, seeds=[9, 9])
    assert same[0] == same[1]


def test_stop_token_ends_the_row_and_is_left_out(session, expected):
    stop = expected[1][10]
    config = SamplingConfig(max_new_tokens=64, stop_token_ids=(stop,))
    for completion, whole in zip(generate(session, toy.PROMPTS, config), expected, strict=True):
        end = whole.index(stop) if stop in whole else 64
        assert completion.token_ids == whole[:end]
        assert completion.finish_reason == ("stop" if stop in whole else "length")


def test_listener_hears_every_token_once(session):
    heard = []
    config = SamplingConfig(max_new_tokens=5)
    generate(session, toy.PROMPTS, config, batch_size=2, listener=lambda *told: heard.append(told))
    for number in range(4):
        reasons = [reason for row, _, reason in heard if row == number]
        assert reasons == [None] * 4 + ["length"]


def test_last_position_can_be_reached(session):
    prompt = [1 + i for i in range(100)]
    config = SamplingConfig(max_new_tokens=28)
    (completion,) = generate(session, [prompt], config)
    assert completion.token_ids == toy.reference_completion(prompt, 28)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], r"prompt 1 has no tokens.*--add-bos"),
        ([1] * 65, r"prompt 1 has 65 tokens; with max_new_tokens 64 .* 128 positions.* to 64"),
        ([1, 340], r"prompt 1 holds ids from 1 to 340, the vocabulary has 340"),
        ([-1], r"prompt 1 holds ids from -1 to -1"),
    ],
)
def test_bad_prompt_is_named(session, prompt, message):
    with pytest.raises(DataError, match=message):
        generate(session, [[1], prompt], GREEDY)


def test_bad_arguments_are_refused(session):
    with pytest.raises(ConfigError, match="batch_size is 0"):
        generate(session, [[1]], GREEDY, batch_size=0)
    with pytest.raises(ConfigError, match=r"stop tokens \[340\] are outside the vocabulary of 340"):
        generate(session, [[1]], SamplingConfig(stop_token_ids=(2, 340), max_new_tokens=4))
    with pytest.raises(ConfigError, match="stop strings are text, and there is no tokenizer"):
        generate(session, [[1]], SamplingConfig(stop_strings=("x",), max_new_tokens=4))


def test_no_prompts_give_no_completions(session):
    assert generate(session, [], GREEDY) == []


def test_nan_logits_name_prompt_and_token(session):
    head = session.chunks[-1].lm_head.weight
    kept = head[5].detach().clone()
    with torch.no_grad():
        head[5] = math.nan
        try:
            with pytest.raises(NumericError, match="after token 4 of prompt 0 are not finite"):
                generate(session, [toy.PROMPTS[1]], GREEDY)
        finally:
            head[5] = kept


def test_cache_bytes_are_those_of_the_cache(session):
    config = session.config
    cache = KVCache(
        session.layers,
        (3, 70, config.num_key_value_heads, config.head_dim),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    tensors = [*cache._keys.values(), *cache._values.values()]
    size = cache_bytes(
        config,
        num_layers=4,
        batch_size=3,
        max_length=70,
        tensor_parallel_size=1,
        dtype=torch.float32,
    )
    assert size == sum(tensor.nbytes for tensor in tensors)


def test_ids_that_no_token_has_are_never_drawn(session):
    tokenizer = toy.toy_tokenizer(330)
    limited = dataclasses.replace(session, tokenizer=tokenizer)
    config = SamplingConfig(max_new_tokens=100, temperature=100.0)
    drawn = [i for c in generate(session, [[1]] * 4, config) for i in c.token_ids]
    assert max(drawn) >= tokenizer.vocab_size, "this temperature must reach them"
    drawn = [i for c in generate(limited, [[1]] * 4, config) for i in c.token_ids]
    assert max(drawn) < tokenizer.vocab_size
