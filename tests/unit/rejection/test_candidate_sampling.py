"""Answers that are drawn, and their log-probabilities in a pass apart."""

import pytest

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.engine import ParallelConfig
from megatron_chimed.generation import SamplingConfig, generate, open_session
from megatron_chimed.generation.prompts import Prompt
from megatron_chimed.generation.resumable import remove_partial
from megatron_chimed.rejection.candidate_sampling import answer_log_probs_of, draw_answers
from megatron_chimed.rejection.inputs import PromptSet
from tests.unit.generation.toy import PROMPTS, VOCAB_SIZE, save_reference

PER_PROMPT = 4
# Every third id: a template's own, those of generation_config.json, ...
STOPS = tuple(range(0, VOCAB_SIZE, 3))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_reference(tmp_path_factory.mktemp("policy"))


def test_an_answers_probability_has_the_stop_token_that_was_drawn(checkpoint, tmp_path, capsys):
    """As generation gives it while it draws."""
    prompts = PromptSet(
        prompts=tuple(
            Prompt(id=str(n), conversation=Conversation((Turn("发热", ""),)))
            for n in range(len(PROMPTS))
        ),
        ids=tuple(map(tuple, PROMPTS)),
    )
    sampling = SamplingConfig(max_new_tokens=6, temperature=1.0, seed=3, stop_token_ids=STOPS)
    output = tmp_path / "samples.parquet"
    with open_session(checkpoint, ParallelConfig(), world=(0, 1, 0)) as session:
        answers = draw_answers(
            session,
            policy=checkpoint,
            prompts=prompts,
            per_prompt=PER_PROMPT,
            sampling=sampling,
            max_batch=4,
            output=output,
        )
        found = answer_log_probs_of(session, prompts, answers, batch_tokens=64)
        drawn = generate(session, PROMPTS, sampling, num_candidates=PER_PROMPT, with_log_probs=True)
    remove_partial(output)
    stops = {item.stop_id for item in answers} - {None}
    assert len(stops) > 1 and stops <= set(STOPS)
    assert all((a.stop_id is None) == (a.finish_reason == "length") for a in answers)
    assert [item.token_ids for item in answers] == [item.token_ids for item in drawn]
    assert found == pytest.approx([sum(item.log_probs) for item in drawn], abs=1e-4)
