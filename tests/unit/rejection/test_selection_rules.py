"""Selection equals a slow reading of its rules; each rule does what its name says."""

import math
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_chimed.data.cleaning.critical import critical_parts
from megatron_chimed.errors import ConfigError
from megatron_chimed.rejection.candidate import POLICY, REFERENCE, Candidate
from megatron_chimed.rejection.selection_rules import (
    DECISIONS,
    SELECTED,
    SelectionConfig,
    count_decisions,
    require_categories,
    select,
    similarity,
)
from tests.unit.rejection.answers import answer


def decisions(candidates, *, untrainable=(), **settings):
    found = select(candidates, SelectionConfig(**settings), untrainable=untrainable)
    return [item.decision for item in found]


class SlowSelection:
    """The rules one by one, each looking at all candidates again."""

    def __init__(
        self, candidates: list[Candidate], config: SelectionConfig, untrainable: set[int]
    ) -> None:
        self.all = candidates
        self.untrainable = {id(candidates[place]) for place in untrainable}
        self.config = config
        order = [POLICY, *sorted({item.source for item in candidates} - {POLICY})]
        self.keys = {
            id(item): (
                math.inf if item.score is None else -item.score,
                item.prompt,
                order.index(item.source),
                item.number,
            )
            for item in candidates
        }

    def better(self, item, among):
        return [other for other in among if self.keys[id(other)] < self.keys[id(item)]]

    def same_prompt(self, item):
        return [other for other in self.all if other.prompt == item.prompt]

    def unfit(self, item):
        config = self.config
        if item.finish_reason == "length" and not config.keep_unfinished:
            return "unfinished"
        if item.num_tokens < config.min_tokens or item.text.isspace() or not item.text:
            return "too_short"
        if config.max_tokens and item.num_tokens > config.max_tokens:
            return "too_long"
        if id(item) in self.untrainable:
            return "too_long_to_train"
        return "unscored" if item.score is None else ""

    def repeats(self, item):
        before = self.better(item, self.same_prompt(item))
        before = [other for other in before if not self.unfit(other)]
        if any(other.text.split() == item.text.split() for other in before):
            return "duplicate"
        kept = [other for other in before if not self.repeats(other)]
        limit = self.config.near_duplicate
        is_near = limit < 1 and any(
            jaccard(item.text, other.text) >= limit
            and critical_parts(item.text) == critical_parts(other.text)
            for other in kept
        )
        return "near_duplicate" if is_near else ""

    def low(self, item):
        config = self.config
        if config.min_score is not None and item.score < config.min_score:
            return "low_score"
        scores = [other.score for other in self.same_prompt(item) if other.score is not None]
        lead = item.score - float(sum(map(Fraction, scores)) / len(scores))
        return "low_lead" if config.min_lead is not None and lead < config.min_lead else ""

    def filtered(self, item):
        return self.unfit(item) or self.repeats(item) or self.low(item)

    def decided(self):
        config = self.config
        found = {id(item): self.filtered(item) for item in self.all}
        left = [item for item in self.all if not found[id(item)]]
        for item in left:
            rivals = [other for other in left if other.prompt == item.prompt]
            if config.per_prompt and len(self.better(item, rivals)) >= config.per_prompt:
                found[id(item)] = "not_in_prompt_top"
        left = [item for item in left if not found[id(item)]]
        for item in left:
            limit = config.quotas.get(item.category, config.per_category)
            rivals = [other for other in left if other.category == item.category]
            if limit and len(self.better(item, rivals)) >= limit:
                found[id(item)] = "over_quota"
        left = [item for item in left if not found[id(item)]]
        for item in left:
            if config.total and len(self.better(item, left)) >= config.total:
                found[id(item)] = "not_in_total_top"
        return [found[id(item)] or "selected" for item in self.all]


def jaccard(first: str, second: str) -> float:
    sets = []
    for text in (first, second):
        letters = "".join(character.lower() for character in text if character.isalnum())
        sets.append({letters[place : place + 3] for place in range(max(1, len(letters) - 2))})
    sets = [found - {""} for found in sets]
    return len(sets[0] & sets[1]) / max(1, len(sets[0] | sets[1]))


@st.composite
def candidate_lists(draw):
    found = []
    for number in range(draw(st.integers(0, 14))):
        prompt = draw(st.integers(0, 2))
        source = draw(st.sampled_from([POLICY, REFERENCE, "gpt-4", "a"]))
        text = draw(st.text("热咳痛Aa。 ", max_size=9))
        item = answer(
            prompt,
            number,
            draw(st.sampled_from([None, -1.0, 0.1, 0.3, 0.3, 2.0])),
            source=source,
            text=text,
            category=("", "内科", "外科")[prompt],
            finish_reason=draw(st.sampled_from(["stop", "stop", "length", None])),
        )
        found.append(item)
    return found


CONFIGS = st.builds(
    SelectionConfig,
    per_prompt=st.integers(0, 3),
    total=st.integers(0, 4),
    min_score=st.sampled_from([None, 0.0, 0.3]),
    min_lead=st.sampled_from([None, 0.0, 0.5]),
    per_category=st.integers(0, 2),
    quotas=st.dictionaries(st.sampled_from(["内科", "", "外科"]), st.integers(0, 2), max_size=2),
    min_tokens=st.integers(0, 3),
    max_tokens=st.sampled_from([0, 3, 6]),
    keep_unfinished=st.booleans(),
    near_duplicate=st.sampled_from([0.2, 0.5, 0.75, 1.0]),
)


@settings(max_examples=400, deadline=None)
@given(candidate_lists(), CONFIGS, st.sets(st.integers(0, 13), max_size=3), st.integers(0, 9))
def test_decisions_are_those_of_the_rules_read_one_by_one(candidates, config, untrainable, seed):
    untrainable = {place for place in untrainable if place < len(candidates)}
    chosen = select(candidates, config, untrainable=untrainable)
    slow = SlowSelection(candidates, config, untrainable)
    assert [item.decision for item in chosen] == slow.decided()
    order = random.Random(seed).sample(range(len(chosen)), len(chosen))
    shuffled = [chosen[place] for place in order]  # decided once more: the same
    moved = {new for new, old in enumerate(order) if old in untrainable}
    assert select(shuffled, config, untrainable=moved) == shuffled
    counts = count_decisions(chosen)
    assert sum(counts.values()) == len(candidates)
    assert list(counts) == [name for name in DECISIONS if name in counts]


def test_best_of_n_is_the_paper_s_figure_and_total_the_scripts():
    candidates = [answer(0, n, score) for n, score in enumerate([5.0, 4.0, 3.0])]
    candidates += [answer(1, n, score) for n, score in enumerate([1.0, 0.5, 2.0])]
    lost = "not_in_prompt_top"
    assert decisions(candidates) == [SELECTED, lost, lost, lost, lost, SELECTED]
    rest = ["not_in_total_top"] * 3
    assert decisions(candidates, per_prompt=0, total=3) == [SELECTED] * 3 + rest


def test_equal_scores_fall_to_the_earlier_prompt_then_to_the_policy_then_to_the_number():
    candidates = [
        answer(1, 0, 1.0),
        answer(0, 1, 1.0),
        answer(0, 0, 1.0, source="a"),
        answer(0, 0, 1.0),
    ]
    for total, chosen in ((1, [3]), (2, [1, 3]), (3, [1, 2, 3])):
        found = decisions(candidates, per_prompt=0, total=total)
        assert [place for place, name in enumerate(found) if name == SELECTED] == chosen


def test_what_a_filter_removes_takes_no_place():
    candidates = [
        answer(0, 0, 9.0, finish_reason="length"),
        answer(0, 1, 8.0, text=" \n"),
        answer(0, 2, 7.0, text="长" * 40),
        answer(0, 3, None),
        answer(0, 4, 5.0, text="多喝水，休息。"),
        answer(0, 5, 4.0, text="多喝水， 休息。 ", source="gpt-4"),
        answer(0, 6, 4.5, text="多喝水，  休息。"),
        answer(0, 7, 4.2, text="多喝水，休息！！"),
        answer(0, 8, 4.1, text="请就医。"),
    ]
    assert decisions(candidates, per_prompt=2, max_tokens=30, near_duplicate=0.9) == [
        "unfinished",
        "too_short",
        "too_long",
        "unscored",
        SELECTED,
        "duplicate",  # of the next one, which is better
        "near_duplicate",  # a blank more is a difference, but none of letters
        "near_duplicate",
        SELECTED,
    ]
    assert decisions(candidates, per_prompt=2, keep_unfinished=True)[0] == SELECTED


def test_what_training_cannot_hold_takes_no_place_but_counts_in_the_mean():
    candidates = [
        answer(0, 0, 9.0, finish_reason="length"),
        answer(0, 1, 8.0, text="长" * 40),
        answer(0, 2, 7.0, text="多喝水"),
        answer(0, 3, None),
        answer(0, 4, 5.0, text="多喝水"),
        answer(0, 5, 1.0, text="请就医"),
    ]
    given = {"untrainable": {0, 1, 2, 3}, "max_tokens": 30, "per_prompt": 2}
    too_long = ["unfinished", "too_long", "too_long_to_train", "too_long_to_train"]
    assert decisions(candidates, **given) == [*too_long, SELECTED, SELECTED]
    # The mean is 6, of all five scores.
    assert decisions(candidates, **given, min_lead=-4.0) == [*too_long, SELECTED, "low_lead"]


def test_a_dose_is_no_duplicate_of_another():
    texts = ["每次2.5毫克", "每次25毫克", "每次２.５毫克"]
    candidates = [answer(0, n, -n, text=text) for n, text in enumerate(texts)]
    assert decisions(candidates, per_prompt=0) == [SELECTED, SELECTED, "duplicate"]
    assert decisions(candidates, per_prompt=0, near_duplicate=0.1)[:2] == [SELECTED, SELECTED]


def test_an_answer_that_denies_another_is_no_near_duplicate():
    texts = ["这个药孕妇可以服用，请遵医嘱。", "这个药孕妇不可以服用，请遵医嘱。"]
    texts += ["这个药孕妇可以服用的，请遵医嘱！"]
    candidates = [answer(0, n, -n, text=text) for n, text in enumerate(texts)]
    found = decisions(candidates, per_prompt=0, near_duplicate=0.5)
    assert found == [SELECTED, SELECTED, "near_duplicate"]


def test_the_lead_is_over_the_mean_of_all_answers_to_the_prompt():
    scores = [0.1, 0.1, 0.1]
    candidates = [answer(0, n, score) for n, score in enumerate(scores)]
    candidates += [answer(1, n, score, finish_reason="length") for n, score in enumerate([8, 2])]
    candidates += [answer(1, 2, 4.0), answer(1, 3, 6.0)]
    assert decisions(candidates, per_prompt=0, min_lead=0.0) == [SELECTED] * 3 + [
        "unfinished",
        "unfinished",
        "low_lead",
        SELECTED,
    ]


def test_a_quota_limits_its_category_and_zero_lifts_the_common_one():
    candidates = [
        answer(prompt, 0, -prompt, category=("内科", "外科", "儿科")[prompt % 3])
        for prompt in range(9)
    ]
    found = decisions(candidates, per_category=1, quotas={"内科": 2, "儿科": 0}, total=5)
    assert found[0::3] == [SELECTED, SELECTED, "over_quota"]
    assert found[1::3] == [SELECTED, "over_quota", "over_quota"]
    assert found[2::3] == [SELECTED, SELECTED, "not_in_total_top"]


def test_similarity_is_the_jaccard_index():
    first, second = np.array([1, 2, 3], np.uint64), np.array([2, 3, 4, 5], np.uint64)
    empty = np.array([], np.uint64)
    assert similarity(first, second) == similarity(second, first) == 2 / 5
    assert similarity(first, first) == 1
    assert similarity(empty, empty) == similarity(first, empty) == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"per_prompt": -1}, "selection.per_prompt is -1: set 0 or more, 0 for no limit"),
        ({"total": -3}, "selection.total is -3"),
        ({"quotas": {"内科": -1}}, r"selection.quotas\['内科'\] is -1"),
        ({"min_score": math.nan}, "selection.min_score is nan"),
        ({"min_lead": math.inf}, "selection.min_lead is inf"),
        ({"min_tokens": 9, "max_tokens": 8}, "selection.max_tokens is 8, below .*min_tokens 9"),
        ({"near_duplicate": 0.0}, "selection.near_duplicate is 0.0: set a similarity above 0"),
        ({"near_duplicate": 1.5}, "selection.near_duplicate is 1.5"),
    ],
)
def test_a_value_out_of_range_is_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        SelectionConfig(**setting)


def test_a_quota_of_a_category_that_no_prompt_has_is_refused():
    config = SelectionConfig(quotas={"内科": 1, "心内": 1})
    require_categories(config, ["内科", "心内", "", "内科"])
    with pytest.raises(ConfigError, match="quotas names '心内', but .* are '', '内科'. Correct"):
        require_categories(config, ["内科", ""])
