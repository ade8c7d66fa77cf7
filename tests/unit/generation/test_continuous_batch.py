"""Who gets which slot, for any requests: nothing waits without need, nothing is lost."""

from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.generation.continuous_batch import ContinuousBatch
from megatron_chimed.generation.requests import Request

SAMPLING = SamplingConfig(max_new_tokens=9)

requests_of_prompts = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 9), min_size=1, max_size=5)),
    min_size=1,
    max_size=8,
).map(
    lambda prompts: [
        Request(
            prompt=(number,) * length, prompt_id=number, candidate=candidate, max_new_tokens=limit
        )
        for number, (length, limits) in enumerate(prompts)
        for candidate, limit in enumerate(limits)
    ]
)


class Slots:
    """A cache that remembers whose prompt lies in each slot."""

    def __init__(self, size):
        self.prompts = [None] * size
        self.num_prefilled = 0

    def run_step(self, batch, budget):
        """What a decoder does with a batch; returns the rows that decoded."""
        batch.admit()
        chosen = batch.unfilled(budget)
        assert len(chosen) <= 1 or sum(row.prefill_length for row in chosen) <= budget
        for row in chosen:
            self.prompts[row.slot], row.is_filled = row.request.prompt, True
            self.num_prefilled += 1
        for row in batch.copies():
            assert self.prompts[row.source.slot] == row.request.prompt
            self.prompts[row.slot], row.source, row.is_filled = row.request.prompt, None, True
        rows = batch.decoding()
        for row in rows:
            if row.prefill_length:
                assert self.prompts[row.slot] == row.request.prompt, "another prompt's cache"
            row.take(7, SAMPLING, None)
        return rows


@settings(max_examples=300, deadline=None)
@given(requests_of_prompts, st.integers(1, 6), st.sampled_from([1, 12, 1000]))
def test_every_request_runs_once_with_its_own_prompt(requests, num_slots, budget):
    batch, slots, ended = ContinuousBatch(requests, num_slots), Slots(num_slots), []
    while batch:
        rows = slots.run_step(batch, budget)
        assert rows, "a step without a token"
        assert len({row.slot for row in rows}) == len(rows) <= num_slots
        ended += [row for row in rows if row.finish_reason]
    assert sorted(row.index for row in ended) == list(range(len(requests)))
    for row in ended:
        assert row.request is requests[row.index]
        assert len(row.completion(with_log_probs=False).token_ids) == row.request.max_new_tokens
    # Candidates lie together, so that each prompt is prefilled once, if it has more than one token.
    prompts = {request.prompt for request in requests if len(request.prompt) > 1}
    assert slots.num_prefilled == len(prompts)


def test_all_slots_run_while_requests_wait():
    requests = [
        Request(prompt=(1, 2), prompt_id=i, max_new_tokens=1 + i * 5 % 9) for i in range(30)
    ]
    batch, slots, left = ContinuousBatch(requests, 4), Slots(4), 30
    while batch:
        rows = slots.run_step(batch, 1000)
        assert len(rows) == min(4, left)
        left -= sum(row.finish_reason is not None for row in rows)
