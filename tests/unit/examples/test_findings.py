from types import SimpleNamespace

import pytest

from examples.quickstart.checks import findings
from examples.quickstart.checks.findings import CheckError


def validation(step, **values):
    return {"kind": "valid", "step": step, **values}


def final_test(accuracy):
    return {"kind": "test", "step": 9, "accuracy": accuracy}


def answers(**scores):
    return [
        SimpleNamespace(prompt_id=prompt, score=score)
        for prompt, values in scores.items()
        for score in values
    ]


BALANCED = [{"chosen": "aa", "rejected": "b"}, {"chosen": "a", "rejected": "bb"}]


def test_sft_is_judged_by_its_first_and_last_validation():
    events = [
        validation(0, loss=5.0),
        {"kind": "step", "step": 1, "loss": 9.0},
        validation(1, loss=2.0),
        validation(2, loss=3.0),
    ]
    finding = findings.judge_sft(events)
    assert (finding.before, finding.after) == ("5.000", "3.000")


@pytest.mark.parametrize("after", [5.0, 5.1, float("nan")])
def test_sft_that_lowers_nothing_is_an_error(after):
    with pytest.raises(CheckError, match=r"did not lower the loss .* 5.000 before"):
        findings.judge_sft([validation(0, loss=5.0), validation(9, loss=after)])


@pytest.mark.parametrize("steps", [(), (0,), (1, 2)])
def test_without_a_validation_at_the_start_nothing_is_judged(steps):
    with pytest.raises(CheckError, match="no validation before its first step"):
        findings.judge_sft([validation(step, loss=1.0) for step in steps])


def test_length_accuracy_counts_ties_half():
    pairs = [*BALANCED, {"chosen": "ccc", "rejected": "dd"}, {"chosen": "e", "rejected": "f"}]
    assert findings.length_accuracy(pairs) == pytest.approx(2.5 / 4)


def test_reward_model_is_judged_by_its_test_beside_length():
    events = [validation(9, accuracy=0.7), final_test(0.9)]
    finding = findings.judge_reward(events, [*BALANCED, {"chosen": "e", "rejected": "f"}])
    assert (finding.before, finding.after) == ("50.0%", "90.0%")
    assert "44% to 100% at 95% confidence (before: by length alone)" in finding.what


def test_reward_model_without_a_test_is_not_judged():
    with pytest.raises(CheckError, match="no test after its last step"):
        findings.judge_reward([validation(9, accuracy=0.9)], BALANCED)


def test_reward_model_at_the_limit_is_an_error():
    with pytest.raises(CheckError, match="ranks 75.0% of 2 held-out pairs, not more than 75%"):
        findings.judge_reward([final_test(0.75)], BALANCED)


@pytest.mark.parametrize("longer", ["chosen", "rejected"])
def test_pairs_that_length_ranks_are_an_error(longer):
    pairs = 11 * [BALANCED[longer == "rejected"]] + 8 * [BALANCED[longer == "chosen"]]
    with pytest.raises(CheckError, match=r"longer answer ranks (57\.9|42\.1)%"):
        findings.judge_reward([final_test(0.9)], pairs)


def test_gain_is_paired_by_prompt():
    gain = findings.measure_gain(
        answers(a=[0.0, 2.0], b=[5.0]), answers(b=[7.0], a=[2.0]), lambda answer: answer.score
    )
    assert (gain.before, gain.after, gain.change) == (3.0, 4.5, 1.5)
    assert gain.before_error == pytest.approx(2.0)
    assert gain.change_error == pytest.approx(0.5)
    assert str(gain).endswith("change +1.500 +- 0.500")


def test_gain_needs_the_same_prompts():
    with pytest.raises(CheckError, match="not to the same prompts"):
        findings.measure_gain(answers(a=[1.0]), answers(b=[1.0]), lambda answer: answer.score)


def test_what_did_not_rise_is_an_error():
    scores = answers(a=[1.0], b=[2.0])
    gain = findings.measure_gain(scores, scores, lambda answer: answer.score)
    with pytest.raises(CheckError, match=r"sampling did not raise reward: 1.500 \+- 0.500 before"):
        findings.judge_gain("sampling", "reward", gain)


def test_pretraining_must_beat_token_frequencies():
    finding = findings.judge_pretraining(model=2.1, unigram=2.92)
    assert (finding.before, finding.after) == ("2.92", "2.10")
    for model in (2.92, float("nan")):
        with pytest.raises(CheckError, match="no better than token frequencies"):
            findings.judge_pretraining(model=model, unigram=2.92)
