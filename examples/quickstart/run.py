"""The whole regime on a laptop: from text to a model that a reward model has taught.

    python examples/quickstart/run.py [--output demo_out]

Preprocess, pretrain on two ranks, reshard, export, verify, fine-tune, train a reward model, sample
by rejection, export, answer. It runs the project's own commands, prints each, leaves everything it
makes in one folder, and fails if a stage did not do its work.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def main(argv: list[str] | None = None) -> int:
    """Runs the demo."""
    sys.path.insert(0, str(ROOT))
    from examples.quickstart.demo import Demo
    from megatron_chimed.command_line import CommandParser
    from megatron_chimed.errors import run_command

    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo_out"), help="folder to make anew")
    return run_command(lambda: _run(Demo(parser.parse_args(argv).output.absolute())))


def _run(demo) -> int:
    from megatron_chimed.errors import InterruptError

    try:
        return _work(demo)
    except KeyboardInterrupt:
        raise InterruptError(
            f"the demo stopped in step {demo.count}, after {demo.seconds:.0f} s. What it made is "
            f"in {demo.folder}; the same command starts anew."
        ) from None


def _work(demo) -> int:
    from examples.quickstart import stages

    demo.clear()
    stages.prepare(demo)
    best = stages.pretrain(demo)
    findings = [
        stages.report_heldout(demo, best),
        stages.fine_tune(demo, best),
        stages.train_reward_model(demo),
        *stages.sample_by_rejection(demo),
    ]
    stages.deliver(demo)
    stages.answer(demo)
    _close(demo, best, findings)
    return 0


def _close(demo, best: Path, findings: Sequence) -> None:
    """Says what the stages did, and where everything lies."""
    folder = demo.folder
    print(
        f"\nDone in {demo.seconds:.0f} s. A model of this size on 1 MB of text has the style, not "
        "the knowledge; the text is synthetic and no medical advice.\n"
    )
    print(f"  {'before':>8} {'after':>8}")
    for finding in findings:
        print(f"  {finding.before:>8} {finding.after:>8}  {finding.stage}: {finding.what}")
    print()
    for what, path in (
        ("loss curves", folder / "{run,sft,reward}/loss_curve.png"),
        ("calibration", folder / "reward/calibration.png"),
        ("rejection sampling", folder / "rejection/report.md"),
        ("every step", folder / "{run,sft,reward}/metrics.jsonl"),
        ("best pretrained", best),
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


if __name__ == "__main__":
    sys.exit(main())
