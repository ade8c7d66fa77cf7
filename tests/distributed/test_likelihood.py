"""Log-probabilities of answers: those of transformers, on every layout and however packed."""

import dataclasses

import pytest
import torch
import torch.distributed as dist

from megatron_chimed.engine import ParallelConfig
from megatron_chimed.errors import ChimedError
from megatron_chimed.generation import SamplingConfig, answer_log_probs, generate, open_session
from tests.tiers import full_but
from tests.unit.generation import toy

TP = "tensor_parallel_size"
PP = "pipeline_parallel_size"
LAYOUTS = {
    "TP2": (2, {TP: 2}),
    "PP2": (2, {PP: 2}),
    "DP2": (2, {}),
    "TP2 x PP2": (4, {TP: 2, PP: 2}),
}
# One token and many, one prompt twice, an id that only the last rank of two has.
PROMPTS = [*toy.PROMPTS, toy.PROMPTS[1], [20] * 100]
ANSWERS = [[9, 4], [339], [2 * i for i in range(80)], [11] * 5, [5, 300, 12], [1, 2]]

STOP = 9


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return toy.save_reference(tmp_path_factory.mktemp("reference"))


def expected():
    """Each answer alone, by transformers."""
    values = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        with torch.no_grad():
            logits = toy.reference_model()(torch.tensor([prompt + answer])).logits[0]
        log_probs = logits[len(prompt) - 1 : -1].double().log_softmax(-1)
        values.append(log_probs.gather(-1, torch.tensor(answer)[:, None]).sum().item())
    return values


def measure(rank, world_size, store_path, checkpoint, parallel, batch_tokens=128):
    store = dist.FileStore(store_path, world_size)
    config = ParallelConfig(timeout_seconds=60, **parallel)
    with open_session(checkpoint, config, world=(rank, world_size, rank), store=store) as session:
        return answer_log_probs(session, PROMPTS, ANSWERS, batch_tokens=batch_tokens)


@pytest.fixture(scope="module")
def one_rank(gloo_pool, checkpoint):
    return gloo_pool.run(measure, 1, checkpoint, {}, init=False)[0]


def test_they_are_those_of_transformers_however_packed(gloo_pool, checkpoint, one_rank):
    assert one_rank == pytest.approx(expected(), abs=1e-4)
    for batch_tokens in (1, 8192):
        (found,) = gloo_pool.run(measure, 1, checkpoint, {}, batch_tokens, init=False)
        assert found == pytest.approx(one_rank, abs=1e-4)


@pytest.mark.parametrize("layout", full_but(["DP2", "TP2 x PP2"], LAYOUTS))
def test_every_layout_finds_the_same_on_every_rank(gloo_pool, checkpoint, one_rank, layout):
    world_size, parallel = LAYOUTS[layout]
    results = gloo_pool.run(measure, world_size, checkpoint, parallel, init=False)
    assert all(result == results[0] for result in results)
    assert results[0] == pytest.approx(one_rank, abs=1e-4)


def test_chunked_losses_find_the_same(gloo_pool, tmp_path, one_rank):
    model = dataclasses.asdict(dataclasses.replace(toy.model_config(), loss_chunk_tokens=16))
    chunked = toy.save_reference(tmp_path, config={"model": model})
    for found in gloo_pool.run(measure, 2, chunked, {TP: 2}, init=False):
        assert found == pytest.approx(one_rank, abs=1e-4)


def test_what_was_drawn_is_as_likely_as_generation_says(gloo_pool, checkpoint):
    reasons, drawn, found = gloo_pool.run(draw_and_measure, 1, checkpoint, init=False)[0]
    assert reasons == {"stop", "length"}
    assert found == pytest.approx(drawn, abs=1e-4)


def draw_and_measure(rank, world_size, store_path, checkpoint):
    sampling = SamplingConfig(max_new_tokens=80, temperature=1.0, stop_token_ids=(STOP,))
    store = dist.FileStore(store_path, world_size)
    with open_session(checkpoint, ParallelConfig(), world=(rank, 1, rank), store=store) as session:
        made = generate(session, toy.PROMPTS, sampling, num_candidates=8, with_log_probs=True)
        prompts = [toy.PROMPTS[completion.prompt_id] for completion in made]
        ends = {"stop": [STOP], "length": []}
        answers = [[*completion.token_ids, *ends[completion.finish_reason]] for completion in made]
        log_probs = answer_log_probs(session, prompts, answers)
    reasons = {completion.finish_reason for completion in made}
    return reasons, [sum(completion.log_probs) for completion in made], log_probs


def refusals(rank, world_size, store_path, checkpoint, parallel):
    """The messages of bad pairs, and of a head that is broken on one rank."""
    store = dist.FileStore(store_path, world_size)
    config = ParallelConfig(timeout_seconds=60, **parallel)
    with open_session(checkpoint, config, world=(rank, world_size, rank), store=store) as session:
        pairs = [([], [1]), ([1], []), ([1] * 100, [2] * 29), ([1], [340])]
        said = [message_of(session, [[1, 2], prompt], [[3], answer]) for prompt, answer in pairs]
        head = session.chunks[-1].lm_head
        if head is not None and session.ranks.tensor_rank == 0:
            with torch.no_grad():
                head.weight[3] = torch.nan
        return [*said, message_of(session, [[1, 2]], [[3]])]


def message_of(session, prompts, answers):
    try:
        answer_log_probs(session, prompts, answers)
    except ChimedError as error:
        return f"{type(error).__name__}: {error}"
    return None


def test_all_ranks_refuse_alike(gloo_pool, checkpoint):
    results = gloo_pool.run(refusals, 4, checkpoint, {TP: 2, PP: 2}, init=False)
    assert all(result == results[0] for result in results)
    no_prompt, no_answer, too_long, unknown, broken = results[0]
    assert no_prompt.startswith("DataError: pair 1 has a prompt of 0 and an answer of 1 tokens")
    assert no_answer.startswith("DataError: pair 1 has a prompt of 1 and an answer of 0 tokens")
    assert "a prompt of 100 and an answer of 29 tokens, more than the model's 128" in too_long
    assert "pair 1 holds ids from 1 to 340, but the vocabulary has 340" in unknown
    assert broken.startswith("NumericError: the log-probability of an answer is not finite")
