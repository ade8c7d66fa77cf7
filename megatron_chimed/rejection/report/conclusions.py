"""A round in sentences: whether it helped, and what it cost."""

from megatron_chimed.observe.intervals import Z_95
from megatron_chimed.rejection.report.formatting import (
    cell,
    counted,
    from_to,
    is_negative_kl,
    with_interval,
)
from megatron_chimed.rejection.report.metrics import Estimate
from megatron_chimed.rejection.report.round_report import AnswerSet, RoundReport


def asked(report: RoundReport) -> str:
    """The kind of prompt that fresh answers belong to."""
    return "held-out prompt" if report.held_out else "training prompt"


def verdict(report: RoundReport) -> str:
    """One sentence: whether the round helped."""
    change = report.change
    if change is None:
        return "Unknown whether the round helped: no prompt has a score before and after."
    fact = f"the mean score on {counted(change.reward.prompts, asked(report))} changed by "
    fact += with_interval(change.reward, "+.3f")
    if change.reward.interval is None:
        return f"Too few prompts to tell whether the round helped: {fact}."
    low, high = change.reward.interval
    if low > 0:
        return f"By the reward model's scores the round helped: {fact}."
    if high < 0:
        return f"By the reward model's scores the round did harm: {fact}."
    return f"No difference beyond chance: {fact}."


def costs(report: RoundReport) -> list[str]:
    """The effect on length, diversity and distance from the first policy, a sentence each."""
    before, after, change = report.before, report.after, report.change
    if before is None or after is None:
        return []
    lines = [
        f"Length: {from_to(before.tokens.mean, after.tokens.mean, '.1f')} tokens per answer"
        + (f", {with_interval(change.tokens, '+.1f')}" if change else "")
        + f"; cut off {from_to(before.unfinished, after.unfinished, '.1%')}."
    ]
    diversity = []
    if before.entropy and after.entropy:
        pair = from_to(before.entropy.mean, after.entropy.mean, ".3f")
        diversity.append(f"entropy {pair} nats per token")
    if before.distinct_2 is not None and after.distinct_2 is not None:
        diversity.append(f"distinct-2 {from_to(before.distinct_2, after.distinct_2, '.3f')}")
    diversity.append(f"different texts {from_to(before.unique, after.unique, '.1%')}")
    lines.append(f"Diversity: {', '.join(diversity)}.")
    if after.kl and after.kl_per_token:
        lines.append(
            f"Distance: KL to the first policy {cell(after.kl, '.3f')} nats per answer "
            f"({after.kl_per_token.mean:.4f} per token)"
            + (f", before the round {cell(before.kl, '.3f')}." if before.kl else ".")
        )
    return lines + remarks(report)


def remarks(report: RoundReport) -> list[str]:
    """Explanations of impossible numbers in the report, a sentence each."""
    sets = {"before": report.before, "after": report.after, "of the candidates": report.candidates}
    return [
        f"The KL {name} is below 0: {_why_negative(found, found.kl)}"
        for name, found in sets.items()
        if found is not None and found.kl is not None and is_negative_kl("kl", found.kl)
    ]


def _why_negative(found: AnswerSet, kl: Estimate) -> str:
    """Why the estimate of a KL divergence can be below 0."""
    sample = f"{counted(found.answers, 'answer')} to {counted(found.prompts, 'prompt')}"
    if kl.error is not None and kl.mean + Z_95 * kl.error < 0:
        return (
            f"by more than {sample} can explain by chance. Draws with a temperature other than 1, "
            "top-k, top-p or a repetition penalty do not follow the policy's own distribution, so "
            "the measured value is not a KL divergence."
        )
    return f"{sample} are too few to distinguish it from 0, its lowest possible value."
