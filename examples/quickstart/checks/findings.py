"""The figures by which each stage is judged.

The `judge_` functions raise a CheckError if the stage did not do its work.
"""

import dataclasses
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_chimed.errors import ChimedError
from megatron_chimed.observe.intervals import wilson_interval

MIN_ACCURACY = 0.75
# How far the baseline by length may be from chance.
LENGTH_TOLERANCE = 0.05


class CheckError(ChimedError):
    """A stage of the quickstart did not do its work."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the table at the end."""

    stage: str
    what: str
    before: str
    after: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gain:
    """Means over prompts before and after, and the mean of the paired differences."""

    before: float
    after: float
    before_error: float
    """Standard errors, each."""
    after_error: float
    change: float
    change_error: float

    def __str__(self) -> str:
        """Means and the paired difference, with standard errors."""
        return (
            f"{self.before:.3f} +- {self.before_error:.3f} before, {self.after:.3f} +- "
            f"{self.after_error:.3f} after; change {self.change:+.3f} +- {self.change_error:.3f}"
        )


def validations(events: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's validations before the first step and after the last one."""
    found = [event for event in events if event["kind"] == "valid"]
    if len(found) < 2 or found[0]["step"] != 0:
        raise CheckError(
            "the run has no validation before its first step and another one after it. Set "
            "training.eval_at_start and data.valid."
        )
    return found[0], found[-1]


def judge_pretraining(*, model: float, unigram: float) -> Finding:
    """The model must need fewer bits per byte of held-out text than token frequencies do."""
    if not model < unigram:
        raise CheckError(
            f"the model ({model:.2f} bits per byte) is no better than token frequencies "
            f"({unigram:.2f}): training did not work. Read the logs."
        )
    return Finding(
        stage="pretraining",
        what="bits per byte of held-out text (before: token frequencies)",
        before=f"{unigram:.2f}",
        after=f"{model:.2f}",
    )


def judge_sft(events: Iterable[Mapping[str, Any]]) -> Finding:
    """The loss of answers about held-out diseases must have fallen."""
    before, after = (event["loss"] for event in validations(events))
    if not after < before:
        raise CheckError(
            f"fine-tuning did not lower the loss of held-out answers: {before:.3f} before, "
            f"{after:.3f} after."
        )
    return Finding(
        stage="SFT",
        what="loss of answers on held-out diseases, nats per token",
        before=f"{before:.3f}",
        after=f"{after:.3f}",
    )


def length_accuracy(pairs: Sequence[Mapping[str, str]]) -> float:
    """Share of pairs whose longer answer is the right one; equally long ones count half."""
    leads = [len(pair["chosen"]) - len(pair["rejected"]) for pair in pairs]
    return statistics.mean(0.5 + 0.5 * ((lead > 0) - (lead < 0)) for lead in leads)


def judge_reward(
    events: Iterable[Mapping[str, Any]], pairs: Sequence[Mapping[str, str]]
) -> Finding:
    """The reward model must rank the test pairs, and length alone must not.

    Args:
        events: Events of a run that ended with a test.
        pairs: The pairs of that test.
    """
    tests = [event["accuracy"] for event in events if event["kind"] == "test"]
    if not tests:
        raise CheckError("the run has no test after its last step. Set data.test.")
    after = tests[-1]
    baseline = length_accuracy(pairs)
    if abs(baseline - 0.5) > LENGTH_TOLERANCE:
        raise CheckError(
            f"taking the longer answer ranks {baseline:.1%} of the held-out pairs: they measure "
            "length, not content."
        )
    if after <= MIN_ACCURACY:
        raise CheckError(
            f"the reward model ranks {after:.1%} of {len(pairs)} held-out pairs, not more than "
            f"{MIN_ACCURACY:.0%}."
        )
    low, high = wilson_interval(round(after * len(pairs)), len(pairs))
    return Finding(
        stage="reward model",
        what=f"held-out pairs ranked correctly, {low:.0%} to {high:.0%} at 95% confidence (before: "
        "by length alone)",
        before=f"{baseline:.1%}",
        after=f"{after:.1%}",
    )


def judge_gain(stage: str, what: str, gain: Gain) -> Finding:
    """A mean over held-out prompts must have risen."""
    if not gain.change > 0:
        raise CheckError(f"{stage} did not raise {what}: {gain}.")
    return Finding(
        stage=stage,
        what=f"{what} ({gain.change:+.3f} +- {gain.change_error:.3f})",
        before=f"{gain.before:.3f}",
        after=f"{gain.after:.3f}",
    )


def measure_gain(
    before: Sequence[Any], after: Sequence[Any], value: Callable[[Any], float]
) -> Gain:
    """Compares answers to the same prompts; each prompt counts once.

    Args:
        before: Answers with `prompt_id`.
        after: Answers to the same prompts.
        value: The measure of an answer.
    """
    first, second = _means(before, value), _means(after, value)
    if first.keys() != second.keys():
        raise CheckError("the answers before and after are not to the same prompts.")
    changes = [second[prompt] - first[prompt] for prompt in first]
    return Gain(
        before=statistics.mean(first.values()),
        after=statistics.mean(second.values()),
        before_error=_standard_error(first.values()),
        after_error=_standard_error(second.values()),
        change=statistics.mean(changes),
        change_error=_standard_error(changes),
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _means(answers: Sequence[Any], value: Callable[[Any], float]) -> dict[str, float]:
    """Mean over the answers to each prompt."""
    values = defaultdict(list)
    for answer in answers:
        values[answer.prompt_id].append(value(answer))
    return {prompt: statistics.mean(found) for prompt, found in values.items()}


def _standard_error(values: Iterable[float]) -> float:
    values = list(values)
    return statistics.stdev(values) / math.sqrt(len(values))
