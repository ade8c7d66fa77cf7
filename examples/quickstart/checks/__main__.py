"""Checks that a stage of the quickstart did its work, and prints the figures.

    python -m examples.quickstart.checks STAGE demo_out

STAGE is `pretraining`, `sft`, `reward` or `rejection`: an error if the stage changed nothing.
`questions` writes some held-out questions, `answers` shows both policies' answers to them, and
`summary` prints a table of all stages.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from examples.quickstart.checks import findings
from examples.quickstart.checks.findings import Finding
from examples.quickstart.dialogues import as_line
from megatron_chimed.command_line import CommandParser
from megatron_chimed.errors import run_command
from megatron_chimed.files import write_text
from megatron_chimed.observe.metrics import read_metrics

FINDINGS_NAME = "findings.jsonl"
MAX_SHOWN = 6


def check_pretraining(folder: Path) -> list[Finding]:
    """Scores held-out text with the exported model in transformers."""
    from examples.quickstart.checks.heldout import measure

    corpus = folder / "corpus"
    result = measure(folder / "hf/pretrained", corpus / "train.jsonl", corpus / "test.jsonl")
    print(f"bits per byte on {result.num_bytes:,} held-out bytes (lower is better)")
    for name, value in (
        ("this model", result.model),
        ("unigram (token frequencies of the training text)", result.unigram),
        ("xz -9e, each document after the training text", result.xz_after_train),
        ("xz -9e, all held-out text by itself", result.xz_alone),
        ("xz -9e, all held-out text after the training text", result.xz_after_all),
    ):
        print(f"  {value:5.2f}  {name}")
    print(
        f"longest string shared with training: {result.shared_length} characters, "
        f"{result.shared_text!r}"
    )
    return [findings.judge_pretraining(model=result.model, unigram=result.unigram)]


def check_sft(folder: Path) -> list[Finding]:
    """Compares the validation losses before and after fine-tuning."""
    return [_shown(findings.judge_sft(read_metrics(folder / "sft/metrics.jsonl")))]


def check_reward(folder: Path) -> list[Finding]:
    """Compares the reward model with the choice of the longer answer."""
    pairs = findings.read_rows(folder / "dialogues/pairs_test.jsonl")
    events = read_metrics(folder / "reward/metrics.jsonl")
    return [_shown(findings.judge_reward(events, pairs))]


def check_rejection(folder: Path) -> list[Finding]:
    """Compares fresh answers to held-out questions before and after, by reward and by rules."""
    from examples.quickstart.checks.rules import RuleChecker
    from megatron_chimed.rejection.candidate import read_candidates

    rounds = sorted((folder / "rejection").glob("round_*/samples.parquet"))
    before, after = (list(read_candidates(path)) for path in (rounds[0], rounds[-1]))
    rules = RuleChecker()
    found = []
    for what, value in (
        ("reward of fresh answers to held-out questions", lambda answer: answer.score),
        ("their score by rules", lambda answer: rules.score(answer.text, answer.category)),
    ):
        gain = findings.measure_gain(before, after, value)
        print(f"{what}: {gain}")
        found.append(findings.judge_gain("rejection sampling", what, gain))
    return found


def write_questions(folder: Path) -> list[Finding]:
    """Writes a few held-out questions without history to `questions.jsonl`."""
    rows = findings.read_rows(folder / "dialogues/prompts_test.jsonl")
    prompts = [{"prompt": row["prompt"]} for row in rows if not row["history"]]
    prompts = prompts[:: max(1, len(prompts) // MAX_SHOWN)][:MAX_SHOWN]
    write_text(folder / "questions.jsonl", "".join(map(as_line, prompts)))
    print(f"{len(prompts)} questions in {folder / 'questions.jsonl'}")
    return []


def show_answers(folder: Path) -> list[Finding]:
    """Prints the answers of the policies before and after rejection sampling."""
    names = ("questions", "answers_sft", "answers_rejection")
    files = (findings.read_rows(folder / f"{name}.jsonl") for name in names)
    for question, before, after in zip(*files, strict=True):
        print(question["prompt"])
        print(f"  SFT:       {before['completion']}")
        print(f"  rejection: {after['completion']}")
    return []


def show_summary(folder: Path) -> list[Finding]:
    """Prints a table of all findings, and where everything is."""
    found = [Finding(**row) for row in findings.read_rows(folder / FINDINGS_NAME)]
    print(f"  {'before':>8} {'after':>8}")
    for finding in found:
        print(f"  {finding.before:>8} {finding.after:>8}  {finding.stage}: {finding.what}")
    print(
        "A model of this size on 1 MB of text has the style, not the knowledge; the text is "
        "synthetic and no medical advice."
    )
    for what, path in (
        ("loss curves", folder / "{run,sft,reward}/loss_curve.png"),
        ("calibration", folder / "reward/calibration.png"),
        ("rejection sampling", folder / "rejection/report.md"),
        ("metrics of each step", folder / "{run,sft,reward}/metrics.jsonl"),
        ("checkpoints", folder / "{run,sft,reward}/checkpoints"),
        ("Hugging Face models", folder / "hf/{pretrained,policy,reward}"),
        ("logs of each step", folder / "logs"),
    ):
        print(f"  {what:20} {path}")
    print(
        "Next: look at what the model reads, talk to it, train on your own text (README.md):\n"
        f"  python tools/inspect_dataset.py view {folder / 'data/sft_train'} "
        f"--tokenizer {folder / 'tokenizer'}\n"
        f"  python tools/generate.py --checkpoint {folder / 'rejection'} --interactive"
    )
    return []


ACTIONS: dict[str, Callable[[Path], list[Finding]]] = {
    "pretraining": check_pretraining,
    "sft": check_sft,
    "reward": check_reward,
    "rejection": check_rejection,
    "questions": write_questions,
    "answers": show_answers,
    "summary": show_summary,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one action and appends its findings to `findings.jsonl`."""
    parser = CommandParser(
        prog="python -m examples.quickstart.checks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=ACTIONS, help="what to check or show")
    parser.add_argument("folder", type=Path, help="output folder of the quickstart")
    return run_command(lambda: _run(parser.parse_args(argv)))


def _run(options: argparse.Namespace) -> int:
    found = ACTIONS[options.stage](options.folder)
    with open(options.folder / FINDINGS_NAME, "a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(dataclasses.asdict(finding)) + "\n" for finding in found)
    return 0


def _shown(finding: Finding) -> Finding:
    print(f"{finding.what}: {finding.before} before, {finding.after} after")
    return finding


if __name__ == "__main__":
    sys.exit(main())
