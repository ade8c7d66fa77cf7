"""What a report says of answers whose numbers are known, and the files that it becomes."""

import dataclasses
import io
import json
import math

import pytest
from rich.console import Console

from megatron_chimed.errors import DataError
from megatron_chimed.rejection.candidate import POLICY, Candidate
from megatron_chimed.rejection.report.conclusions import costs, remarks, verdict
from megatron_chimed.rejection.report.formatting import cell
from megatron_chimed.rejection.report.metrics import Estimate
from megatron_chimed.rejection.report.report_files import (
    read_round_report,
    write_overview,
    write_round_report,
)
from megatron_chimed.rejection.report.round_markdown import MEANINGS
from megatron_chimed.rejection.report.round_report import measure_answers, measure_round
from megatron_chimed.rejection.report.tables import terminal_table
from megatron_chimed.rejection.selection_rules import DECISIONS, SelectionConfig, select

PNG = b"\x89PNG\r\n\x1a\n"


def answer(prompt, number, score, *, text=None, length=4, **changes):
    fields = {
        "prompt": prompt,
        "prompt_id": f"q{prompt}",
        "category": "",
        "source": POLICY,
        "number": number,
        "seed": 5,
        "text": f"答案{prompt}之{number}" if text is None else text,
        "token_ids": tuple(range(length)),
        "num_tokens": length,
        "finish_reason": "stop",
        "score": score,
    }
    return Candidate(**fields | changes)


def held_out(scores, *, length=4, log_prob=-10.0, gap=0.0):
    """One answer to each prompt."""
    likely = {"log_prob": log_prob, "first_log_prob": log_prob - gap}
    return [answer(p, 0, score, length=length, **likely) for p, score in enumerate(scores)]


BEFORE = held_out([0.0, 1.0, -1.0, 2.0])
AFTER = held_out([1.0, 1.5, -1.5, 4.0], length=9, log_prob=-5.0, gap=2.0)
CANDIDATES = select(
    [
        *(answer(0, n, score, length=n + 1) for n, score in enumerate([0.5, 2.0, 1.0])),
        *(answer(1, n, score, length=n + 1) for n, score in enumerate([3.0, 1.0, -1.0])),
        answer(1, 3, 9.0, finish_reason="length"),
        answer(2, 0, None),
        answer(0, 0, 5.0, source="gpt|4", finish_reason=None, seed=None),
    ],
    SelectionConfig(),
)
SKIPPED = {"prompt_too_long": ["q7", "q8"], "none": []}


def make_report(**changes):
    given = {"candidates": CANDIDATES, "before": BEFORE, "after": AFTER, "skipped": SKIPPED}
    return measure_round(1, **given | changes)


def test_the_change_is_taken_prompt_by_prompt():
    change = make_report().change
    assert change.reward.mean == pytest.approx(0.75)  # of 1, 0.5, -0.5, 2
    assert change.reward.error == pytest.approx(math.sqrt(3.25 / 3 / 4))
    assert (change.improved, change.worsened) == (0.75, 0.25)
    odds = [1 / (1 + math.exp(-gain)) for gain in (1.0, 0.5, -0.5, 2.0)]
    assert change.preferred == pytest.approx(sum(odds) / 4)
    assert change.tokens.mean == 5.0 and change.tokens.error == 0.0


def test_prompts_that_are_in_one_set_only_do_not_count():
    unscored = dataclasses.replace(AFTER[0], score=None)
    report = make_report(after=[unscored, *AFTER[1:3]])
    assert report.change.reward.prompts == 2
    assert report.change.reward.mean == pytest.approx(0.0)
    assert report.after.reward.prompts == 2 and report.after.prompts == 3


def test_candidates_are_told_by_source_and_decision():
    report = make_report()
    assert {k: (s.answers, s.reward, s.selected) for k, s in report.sources.items()} == {
        "policy": (8, pytest.approx(15.5 / 7), 1),
        "gpt|4": (1, 5.0, 1),
    }
    assert report.decisions == {
        "unfinished": 1,
        "unscored": 1,
        "duplicate": 1,
        "not_in_prompt_top": 4,
        "selected": 2,
    }
    assert report.candidates.answers == 8 and report.selected.answers == 2
    assert report.selected.reward.mean == pytest.approx(4.0)
    assert report.candidates.unfinished == 1 / 8
    assert report.skipped == {"prompt_too_long": ("q7", "q8")}


def test_the_curve_is_of_the_prompts_with_most_candidates():
    report = make_report()
    assert report.best_of_n_prompts == 1  # the second prompt has four
    # Of 3, 1, -1 and 9: the mean, then 9 in three of six pairs, 3 in two, 1 in one.
    assert report.best_of_n == pytest.approx((3.0, (27 + 6 + 1) / 6, (27 + 3) / 4, 9.0))


def test_length_and_reward_of_all_and_within_prompts():
    """Longer answers to a prompt score higher, but the prompt with long ones scores low."""
    short = [answer(0, n, 10.0 + n, length=1 + n) for n in range(3)]
    long = [answer(1, n, 0.0 + n, length=11 + n) for n in range(3)]
    report = make_report(candidates=short + long)
    assert report.length_reward == pytest.approx(1 - 6 * 54 / (6 * 35))
    assert report.length_reward_within == pytest.approx(1.0)


def test_kl_and_entropy_are_those_of_the_distribution():
    """Eight draws that hold each answer as often as the policy would on average."""
    shares, first = {"a": 0.5, "b": 0.25, "c": 0.25}, {"a": 0.125, "b": 0.5, "c": 0.375}
    drawn = [text for text, share in shares.items() for _ in range(int(share * 8))]
    answers = [
        answer(
            prompt,
            0,
            0.0,
            text=text,
            length=1 if text == "a" else 4,
            log_prob=math.log(shares[text]),
            first_log_prob=math.log(first[text]),
        )
        for prompt, text in enumerate(drawn)
    ]
    found = measure_answers(answers)
    kl = sum(p * math.log(p / first[text]) for text, p in shares.items())
    entropy = -sum(p * math.log(p) for p in shares.values())
    tokens = 0.5 * 2 + 0.5 * 5  # with the token that ends an answer
    assert found.kl.mean == pytest.approx(kl)
    assert found.kl_per_token.mean == pytest.approx(kl / tokens)
    assert found.entropy.mean == pytest.approx(entropy / tokens)
    chosen = measure_answers(answers, drawn=False)
    assert (chosen.kl, chosen.kl_per_token, chosen.entropy) == (None, None, None)


def test_a_cut_off_answer_has_no_token_that_ends_it():
    found = measure_answers([answer(0, 0, 0.0, finish_reason="length", log_prob=-8.0)])
    assert found.entropy.mean == 2.0 and found.unfinished == 1.0


def verdict_of(gains):
    before, after = held_out([0.0] * len(gains)), held_out(gains)
    return verdict(make_report(before=before, after=after))


def test_the_verdict_minds_chance():
    assert verdict_of([0.5, 0.6, 0.4, 0.5]) == (
        "By the reward model's scores the round helped: the mean score on 4 held-out prompts "
        "changed by +0.500 (95% interval +0.371 to +0.629)."
    )
    assert "did harm" in verdict_of([-0.5, -0.6, -0.4, -0.5])
    assert verdict_of([2.0, -1.0, 0.5, 0.0]).startswith("No difference beyond chance")
    assert verdict_of([2.0, 2.0]).startswith("Too few prompts to tell")
    assert "no prompt has a score before and after" in verdict(make_report(after=[]))
    assert "4 training prompts" in verdict(make_report(held_out=False))


def test_one_of_a_thing_is_told_as_one(tmp_path):
    assert "on 1 held-out prompt changed by +1.000" in verdict_of([1.0])
    alone = [answer(0, 0, 1.0, length=1, decision="selected")]
    report = make_report(candidates=alone, before=alone, after=alone)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_table(report))
    assert "1 of 1 candidate learned" in console.export_text()
    write_round_report(tmp_path, report, candidates=alone, before=alone, after=alone)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "of the policy, over 1 prompt:" in text and "score 1.000, 1 token:" in text
    write_overview(tmp_path, [report])
    assert "# Rejection sampling, 1 round\n" in (tmp_path / "report.md").read_text("utf-8")


def test_answers_by_others_alone_leave_no_column_for_the_policy(tmp_path):
    theirs = [answer(p, 0, float(p), source="reference", decision="selected") for p in range(3)]
    report = make_report(candidates=theirs)
    assert report.candidates is None and report.length_reward_within is None
    write_round_report(tmp_path, report, candidates=theirs, before=BEFORE, after=AFTER)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "policy's candidates" not in text
    assert "|  | selected |\n| :-- | --: |\n| prompts | 3 |" in text


def test_costs_name_length_diversity_and_distance():
    length, diversity, distance = costs(make_report())
    assert length.startswith("Length: 4.0 -> 9.0 tokens per answer, +5.0")
    # -log p over tokens with the end: 10/5 and 5/10.
    assert "entropy 2.000 -> 0.500 nats per token" in diversity
    assert "KL to the first policy 2.000 ± 0.000 nats per answer (0.2000 per token)" in distance
    assert "before the round 0.000" in distance


def with_gaps(gaps):
    """An answer to each prompt, of which the policy is so much surer than the first one was."""
    return [
        answer(p, 0, float(p), log_prob=-9.0, first_log_prob=-9.0 - gap)
        for p, gap in enumerate(gaps)
    ]


def test_a_kl_below_zero_is_told_with_its_error_and_why(tmp_path):
    after = with_gaps([-0.9, 0.3, -0.4, 0.2] * 5)
    report = make_report(before=with_gaps([-1e-9] * 20), after=after)
    why = (
        "The KL after is below 0: 20 answers to 20 prompts are too few to distinguish it from 0, "
        "its lowest possible value."
    )
    assert costs(report)[-1] == why
    assert "-0.200 ± 0.111 nats per answer" in costs(report)[-2]
    assert "before the round 0.000 ± 0.000." in costs(report)[-2], "rounding is no negative KL"
    write_round_report(tmp_path, report, candidates=CANDIDATES, before=BEFORE, after=after)
    assert why in (tmp_path / "report.md").read_text(encoding="utf-8")
    write_overview(tmp_path / "all", [report])
    assert why in (tmp_path / "all" / "report.md").read_text(encoding="utf-8")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal_table(report))
    shown = " ".join(console.export_text().split())
    assert "KL to first policy, nats/answer 0.000 -0.200 ± 0.111" in shown and why in shown


def test_a_kl_below_zero_beyond_chance_is_none_at_all():
    report = make_report(after=with_gaps([-1.0, -1.1, -0.9, -1.0]))
    assert "by more than 4 answers to 4 prompts can explain by chance" in costs(report)[-1]
    assert "the measured value is not a KL divergence" in costs(report)[-1]
    assert remarks(make_report()) == []


def test_no_cell_holds_a_nan_or_a_negative_zero():
    assert cell(math.nan, ".3f") == "undefined"
    assert cell(Estimate(mean=math.nan, error=math.nan, prompts=1), ".3f").startswith("undefined")
    assert cell(-1e-9, ".3f") == "0.000" and cell(-0.002, ".3f") == "-0.002"
    assert cell((-0.0, -1e-9), ".1%") == "0.0% / 0.0%"


def test_shares_of_few_prompts_have_their_interval(tmp_path):
    report = make_report()
    write_round_report(tmp_path, report, candidates=CANDIDATES, before=BEFORE, after=AFTER)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Better on 75.0% (95% interval 30% to 95%) of the prompts" in text


def test_files_of_a_round(tmp_path):
    report = make_report()
    write_round_report(tmp_path, report, candidates=CANDIDATES, before=BEFORE, after=AFTER)
    names = {path.name for path in tmp_path.iterdir()}
    pictures = {"rewards.png", "best_of_n.png", "length_reward.png"}
    assert names == pictures | {"report.json", "report.md"}
    assert all((tmp_path / name).read_bytes().startswith(PNG) for name in pictures)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert all(f"![]({name})" in text for name in pictures)
    assert "| score | 0.500 ± 0.645 | 1.250 ± 1.127 | +0.750 ± 0.520 |" in text
    assert "| `prompt_too_long` | 2 | q7, q8 |" in text
    assert "| gpt\\|4 | 1 | 5.000 | 1 | 100.0% |" in text
    assert read_round_report(tmp_path) == report
    assert json.loads((tmp_path / "report.json").read_text())["best_of_n_prompts"] == 1


def test_quotations_show_the_extremes_and_no_markup_of_theirs(tmp_path):
    before = [dataclasses.replace(item, text=f"<b>{item.prompt_id}\n# x") for item in BEFORE]
    after = [dataclasses.replace(item, text="长" * 600) for item in AFTER]
    report = make_report(before=before, after=after)
    write_round_report(tmp_path, report, candidates=CANDIDATES, before=before, after=after)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    titles = [line for line in text.splitlines() if line.startswith("### ")]
    assert titles == [
        "### Largest gain: q3, +2.000",
        "### Least gain: q2, -0.500",
        "### Median gain: q0, +1.000",
    ]
    write_round_report(tmp_path, report, candidates=CANDIDATES, before=before, after=after[:2])
    few = (tmp_path / "report.md").read_text(encoding="utf-8")
    titles = [line for line in few.splitlines() if line.startswith("### ")]
    assert titles == ["### Largest gain: q0, +1.000", "### Least gain: q1, +0.500"]
    assert "> &lt;b&gt;q3\n> # x\n" in text
    assert f"> {'长' * 500} [...]\n" in text


def test_a_round_without_scores_or_answers_is_told_as_such(tmp_path):
    unscored = [answer(0, n, None) for n in range(2)]
    report = make_report(candidates=unscored, before=[], after=[], skipped={})
    write_round_report(tmp_path, report, candidates=unscored, before=[], after=[])
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.md"}
    assert "![](" not in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert read_round_report(tmp_path) == report
    write_overview(tmp_path / "all", [report])
    assert {path.name for path in (tmp_path / "all").iterdir()} == {"report.md"}


def test_a_damaged_report_is_refused(tmp_path):
    for content in ("{", "[]", '{"number": 1}'):
        (tmp_path / "report.json").write_text(content)
        with pytest.raises(DataError, match="cannot be read as the report of a round"):
            read_round_report(tmp_path)


def test_the_overview_follows_the_policy(tmp_path):
    first = make_report()
    second = dataclasses.replace(
        make_report(before=AFTER, after=held_out([2.0] * 4, length=12, gap=3.0)), number=2
    )
    write_overview(tmp_path, [first, second])
    assert (tmp_path / "overview.png").read_bytes().startswith(PNG)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "- Round 1: No difference" in text and "- Round 2: " in text
    rows = [line for line in text.splitlines() if line[:4] in ("| 0 ", "| 1 ", "| 2 ")]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [row[3] for row in cells] == ["4.0 ± 0.0", "9.0 ± 0.0", "12.0 ± 0.0"]
    assert [row[4] for row in cells] == ["0.000 ± 0.000", "2.000 ± 0.000", "3.000 ± 0.000"]
    assert [row[-1] for row in cells] == ["", "2", "2"]


def test_the_terminal_shows_the_change():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_table(make_report()))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["score", "0.500", "1.250", "+0.750", "±", "0.520"] in lines
    assert "2 of 9 candidates learned; ± is the standard error".split() in lines


def test_every_decision_is_explained():
    assert set(MEANINGS) == {"", *DECISIONS}
