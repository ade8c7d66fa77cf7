"""Candidates and their scores on many ranks are those of one."""

import dataclasses

import pytest
import torch.distributed as dist

from megatron_chimed.config.parsing import ConfigParser
from megatron_chimed.engine import ParallelConfig
from megatron_chimed.generation import open_session
from megatron_chimed.rejection.candidate import POLICY
from megatron_chimed.rejection.candidate_sampling import draw_answers, given_answers
from megatron_chimed.rejection.candidate_scoring import score_answers
from megatron_chimed.rejection.config import RejectionConfig
from megatron_chimed.rejection.inputs import open_rejection_inputs
from megatron_chimed.rejection.selection_rules import SELECTED, select
from tests.integration.rejection import NUM_PROMPTS, PER_PROMPT, configure_rounds
from tests.tiers import full_but

TP, PP = "tensor_parallel_size", "pipeline_parallel_size"
LAYOUTS = {
    "TP2": (2, {TP: 2}),
    "PP2": (2, {PP: 2}),
    "DP2": (2, {}),
    "TP2xPP2": (4, {TP: 2, PP: 2}),
    "TP2xDP2": (4, {TP: 2}),
}


def draw_and_score(rank, world_size, store_path, path, output, parallel):
    """What a round does up to its selection, with files for rendezvous."""
    parser = ConfigParser(RejectionConfig, "test")
    config = parser.config(parser.parse_args(["--config", path]))
    inputs = open_rejection_inputs(config)
    parallel = ParallelConfig(timeout_seconds=60, **parallel)

    def opened(checkpoint, head):
        store = dist.FileStore(f"{store_path}-{head}", world_size)
        world = (rank, world_size, rank)
        return open_session(checkpoint, parallel, head=head, world=world, store=store)

    with opened(inputs.policy, "lm") as session:
        drawn = draw_answers(
            session,
            policy=inputs.policy,
            prompts=inputs.prompts,
            per_prompt=config.candidates.per_prompt,
            sampling=config.candidates.sampling(seed=7, stop_ids=inputs.stop_ids),
            max_batch=5,  # so that replicas and batches end at different steps
            output=output,
        )
    given = given_answers(
        inputs.tokenizer, inputs.prompts.prompts, inputs.external, references=True
    )
    with opened(inputs.reward_model, "score") as session:
        scored = score_answers(
            session,
            inputs.prompts.prompts,
            [*drawn, *given],
            output=output,
            template=inputs.template,
            batch_tokens=100,
        )
    return select(scored, config.selection)


def run(gloo_pool, project, folder, world_size, parallel):
    # A draw differs between layouts where its random number falls within rounding of the limit
    # between two tokens: of 400 draws from 400 tokens one did, on one processor. Of 16 few can.
    candidates = {"external": [str(project / "doctors.jsonl")], "top_k": 16}
    path = configure_rounds(project, "layouts", candidates=candidates)
    words = (str(path), folder / "candidates.parquet", parallel)
    return gloo_pool.run(draw_and_score, world_size, *words, init=False)


@pytest.fixture(scope="module")
def one_rank(gloo_pool, rejection_project, tmp_path_factory):
    (found,) = run(gloo_pool, rejection_project, tmp_path_factory.mktemp("one"), 1, {})
    return found


@pytest.mark.parametrize("layout", full_but(["TP2xPP2", "TP2xDP2"], LAYOUTS))
def test_a_layout_draws_and_scores_like_one_rank(
    gloo_pool, rejection_project, one_rank, tmp_path, layout
):
    results = run(gloo_pool, rejection_project, tmp_path, *LAYOUTS[layout])
    for found in results:
        assert [dataclasses.replace(c, score=None) for c in found] == [
            dataclasses.replace(c, score=None) for c in one_rank
        ]
        for ours, theirs in zip(found, one_rank, strict=True):
            assert ours.score == pytest.approx(theirs.score, abs=1e-5)
    assert all(found == results[0] for found in results), "each rank decides on the same"


def test_there_was_something_to_decide(one_rank):
    drawn = [c for c in one_rank if c.source == POLICY]
    assert len(drawn) == NUM_PROMPTS * PER_PROMPT
    assert len({c.token_ids for c in drawn}) > len(drawn) // 2
    assert sum(c.decision == SELECTED for c in one_rank) == NUM_PROMPTS
    assert len({c.source for c in one_rank}) == 4
