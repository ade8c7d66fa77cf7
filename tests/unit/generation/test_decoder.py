"""Decoding on one rank against transformers: same tokens, same ends, clear errors."""

import dataclasses
import math
from unittest import mock

import pytest
import torch

from megatron_chimed.errors import ConfigError, DataError, NumericError
from megatron_chimed.generation import (
    Request,
    SamplingConfig,
    cache_bytes,
    decoder,
    generate,
    longest_prompt,
    make_requests,
    stream_completions,
)
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


@pytest.mark.parametrize(("max_batch", "prefill_tokens"), [(16, 2048), (16, 12), (2, 2048), (1, 1)])
def test_greedy_equals_transformers_row_by_row(
    session, expected, monkeypatch, max_batch, prefill_tokens
):
    monkeypatch.setattr(decoder, "PREFILL_TOKENS", prefill_tokens)
    completions = generate(session, toy.PROMPTS, GREEDY, max_batch=max_batch)
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
    whole = generate(session, toy.PROMPTS, config, max_batch=4)
    for max_batch in (3, 1):
        assert generate(session, toy.PROMPTS, config, max_batch=max_batch) == whole
    alone = [
        completion
        for request in make_requests(toy.PROMPTS)
        for completion in stream_completions(session, [request], config)
    ]
    assert alone == whole


def test_log_probs_have_the_same_bits_in_any_batch(session):
    """Tokens could agree by luck; bits cannot."""
    config = SamplingConfig(max_new_tokens=20, temperature=1.0, seed=3)
    whole = generate(session, toy.PROMPTS, config, num_candidates=3, with_log_probs=True)
    for max_batch in (1, 2, 5):
        again = generate(
            session,
            toy.PROMPTS,
            config,
            num_candidates=3,
            max_batch=max_batch,
            with_log_probs=True,
        )
        assert again == whole


def test_a_resumed_job_draws_the_same_candidates(session):
    whole = generate(session, toy.PROMPTS, SAMPLED, num_candidates=4, with_log_probs=True)
    left = [
        r for r in make_requests(toy.PROMPTS, num_candidates=4) if (r.prompt_id + r.candidate) % 3
    ]
    found = stream_completions(session, left, SAMPLED, max_batch=3, with_log_probs=True)
    wanted = {(c.prompt_id, c.candidate): c for c in whole}
    found = list(found)
    assert len(found) == len(left)
    assert all(wanted[c.prompt_id, c.candidate] == c for c in found)


def test_seed_prompt_and_candidate_decide_the_sample(session):
    prompts = [toy.PROMPTS[1]] * 2
    drawn = tokens_of(generate(session, prompts, SAMPLED, num_candidates=2))
    assert len(set(drawn)) == 4, "candidates, and prompts with other ids, must differ"
    other = dataclasses.replace(SAMPLED, seed=6)
    assert set(drawn).isdisjoint(tokens_of(generate(session, prompts, other, num_candidates=2)))


def test_log_probs_are_those_of_transformers(session):
    config = dataclasses.replace(SAMPLED, stop_token_ids=tuple(range(0, 340, 9)))
    found = generate(session, toy.PROMPTS, config, num_candidates=2, with_log_probs=True)
    assert {c.finish_reason for c in found} == {"stop", "length"}
    for completion in found:
        prompt = toy.PROMPTS[completion.prompt_id]
        ids = torch.tensor([[*prompt, *completion.token_ids]])
        with torch.no_grad():
            logits = toy.reference_model()(ids).logits[0, len(prompt) - 1 :]
        expected = logits.log_softmax(-1)[range(len(completion.token_ids)), completion.token_ids]
        given = torch.tensor(completion.log_probs)
        torch.testing.assert_close(given[: len(expected)], expected, rtol=1e-4, atol=1e-4)
        assert len(given) == len(expected) + (completion.finish_reason == "stop")
    assert all(c.log_probs is None for c in generate(session, [[1]], config))


def test_candidates_share_one_prefill_and_slots_are_taken_over_at_once(session):
    """No step runs fewer rows than it could, and each prompt is prefilled once."""
    steps, filled = [], []
    plain_decode, plain_prefill = decoder.Decoder._decode, decoder.Decoder._prefill

    def count_decode(self, rows):
        steps.append(len(rows))
        return plain_decode(self, rows)

    def count_prefill(self, rows):
        filled.extend(row.request.prompt_id for row in rows)
        return plain_prefill(self, rows)

    limits = [3, 9, 1, 6, 12, 2, 7, 5]
    requests = [
        Request(
            prompt=tuple(toy.PROMPTS[i // 2 or 1]),
            prompt_id=i // 2,
            candidate=i % 2,
            max_new_tokens=limit,
        )
        for i, limit in enumerate(limits)
    ]
    with (
        mock.patch.object(decoder.Decoder, "_decode", count_decode),
        mock.patch.object(decoder.Decoder, "_prefill", count_prefill),
    ):
        found = list(stream_completions(session, requests, GREEDY, max_batch=3))
    assert sum(steps) == sum(limits)
    # Greedy list scheduling of these lengths on three slots.
    free = [0, 0, 0]
    for limit in limits:
        free[free.index(min(free))] += limit
    assert len(steps) == max(free)
    assert steps[: min(free)] == [3] * min(free)
    # Prompts 0 and 1 are the same tokens here, so one prefill serves both.
    assert filled == [0, 2, 3]
    whole = {i: toy.reference_completion(toy.PROMPTS[i // 2 or 1], 12) for i in range(8)}
    for completion in found:
        number = 2 * completion.prompt_id + completion.candidate
        assert completion.token_ids == whole[number][: limits[number]]


def test_completions_come_as_soon_as_they_end(session):
    requests = [
        Request(prompt=(5, 6), prompt_id=0, max_new_tokens=20),
        Request(prompt=(7, 8), prompt_id=1, max_new_tokens=2),
        Request(prompt=(9,), prompt_id=2, max_new_tokens=2),
    ]
    found = stream_completions(session, requests, GREEDY, max_batch=2)
    assert [completion.prompt_id for completion in found] == [1, 2, 0]


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
    generate(session, toy.PROMPTS, config, max_batch=2, on_token=lambda *told: heard.append(told))
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
        ([], r"prompt 1 \(the first is 0\) has no tokens.*--add-bos"),
        (
            [1] * 65,
            r"prompt 1 \(the first is 0\) has 65 tokens; with max_new_tokens 64 .* 128 .* to 64",
        ),
        (
            [1, 340],
            r"prompt 1 \(the first is 0\) holds ids from 1 to 340, but the vocabulary has 340",
        ),
        ([-1], r"prompt 1 \(the first is 0\) holds ids from -1 to -1"),
    ],
)
def test_bad_prompt_is_named(session, prompt, message):
    with pytest.raises(DataError, match=message):
        generate(session, [[1], prompt], GREEDY)


def test_bad_arguments_are_refused(session):
    with pytest.raises(ConfigError, match="max_batch is 0"):
        generate(session, [[1]], GREEDY, max_batch=0)
    with pytest.raises(ConfigError, match="num_candidates is 0"):
        generate(session, [[1]], GREEDY, num_candidates=0)
    with pytest.raises(ConfigError, match="asks for at most 65 tokens: set 1 to 64"):
        stream_completions(session, [Request(prompt=(1,), prompt_id=0, max_new_tokens=65)], GREEDY)
    with pytest.raises(ConfigError, match=r"stop tokens \[340\] are outside the vocabulary of 340"):
        generate(session, [[1]], SamplingConfig(stop_token_ids=(2, 340), max_new_tokens=4))
    with pytest.raises(ConfigError, match="stop strings need a tokenizer, and there is none"):
        generate(session, [[1]], SamplingConfig(stop_strings=("x",), max_new_tokens=4))


def test_longest_prompt_is_the_one_that_is_taken(session):
    room = longest_prompt(session, GREEDY)
    assert len(generate(session, [[1] * room], GREEDY)[0].token_ids) == 64
    with pytest.raises(DataError, match=f"has {room + 1} tokens"):
        generate(session, [[1] * (room + 1)], GREEDY)


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
        (5, config.num_key_value_heads, 70, config.head_dim),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    tensors = [tensor for layer in session.layers for tensor in cache.of_layer(layer)]
    size = cache_bytes(
        config,
        num_layers=4,
        max_batch=5,
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
