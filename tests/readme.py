"""Types the commands of README.md's section on one's own text, and checks what a person would see.

    python -m tests.readme [--folder DIR]

They run as they are printed, one after the other, in a new folder that links to this checkout:
tokenizer, pretraining, SFT, a question, a talk, the export, and `transformers` with the chat
template. Minutes on two cores. README_zh.md has to print the same commands.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_chimed.observe.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = {"README.md": "## Your own text", "README_zh.md": "## 用你自己的文本"}
LINKS = (".venv", "examples", "megatron_chimed", "tools")
COMMAND_SECONDS = 900
TALK = ("肺炎有哪些症状？", "用什么药？", "/reset", "高血压平时怎么护理？", "/exit")
LEARNED = {"runs/mine": (7.5, 4.5), "runs/dialogues": (4.5, 2.2)}
"""Validation loss in nats per token: at the start above the first, at the end below the second."""


def blocks(name: str) -> list[str]:
    """The fenced blocks of the section, each with its language in the first line."""
    text = (ROOT / name).read_text(encoding="utf-8")
    section = text.partition(SECTIONS[name] + "\n")[2].partition("\n## ")[0]
    return re.findall(r"^```(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)


def commands(name: str) -> list[str]:
    """The shell commands of the section, without comments; continued lines are one command."""
    text = "".join(block for block in blocks(name) if block.startswith("\n"))
    lines = text.replace("\\\n", " ").splitlines()
    return [stripped for line in lines if (stripped := re.sub(r"\s+# .*$", "", line).strip())]


def run(words: Sequence[str], folder: Path, stdin: str = "") -> str:
    """Runs a command to its end and gives what it printed.

    Raises:
        SystemExit: It failed.
    """
    print("$", words[-1].partition(" && ")[2], flush=True)
    started = time.monotonic()
    done = subprocess.run(
        words,
        cwd=folder,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMMAND_SECONDS,
    )
    print("\n".join(done.stdout.splitlines()[-4:]))
    print(f"  ({time.monotonic() - started:.0f} s)", flush=True)
    if done.returncode:
        sys.exit(f"it ended with code {done.returncode}:\n{done.stdout}")
    return done.stdout


def expect(condition: object, what: str) -> None:
    """Ends the script where what a person was told is not so.

    Raises:
        SystemExit: The condition does not hold.
    """
    if not condition:
        sys.exit(f"README.md is not true: {what}")


def check_runs(folder: Path) -> None:
    """The two runs have learned, kept their best checkpoint and drawn their curves."""
    for name, (above, below) in LEARNED.items():
        events = read_metrics(folder / name / "metrics.jsonl")
        losses = [event["loss"] for event in events if event["kind"] == "valid"]
        expect(losses[0] > above and losses[-1] < below, f"validation of {name}: {losses}")
        expect((folder / name / "loss_curve.png").stat().st_size, f"{name} has no curve")
        expect((folder / name / "checkpoints/best").is_file(), f"{name} has no best checkpoint")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs everything; any difference ends it with a message and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="new folder to work in (default: a temporary)")
    flags = parser.parse_args(argv)
    expect(commands("README.md") == commands("README_zh.md"), "the Chinese one has other commands")
    with tempfile.TemporaryDirectory(prefix="readme_") as scratch:
        folder = flags.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in LINKS:
            os.symlink(ROOT / name, folder / name)
        type_commands(folder)
    print("the commands of README.md do what it says")
    return 0


def type_commands(folder: Path) -> None:
    """Types all of the section in a folder, and looks at what comes."""
    activate, *rest = commands("README.md")
    said = {}
    for command in rest:
        stdin = "\n".join(TALK) if command.endswith("--interactive") else ""
        said[command] = run(["bash", "-c", f"{activate} && {command}"], folder, stdin)
    check_runs(folder)
    (answer,) = (text for command, text in said.items() if " --prompt " in command)
    (talk,) = (text for command, text in said.items() if command.endswith("--interactive"))
    expect("template ziya" in answer and "template ziya" in talk, "the template is not named")
    answer = "\n".join(s for s in answer.splitlines() if not s.startswith("template ")).rstrip()
    expect(answer and not answer.startswith(" ") and "<" not in answer, f"an answer {answer!r}")
    expect(answer in talk, f"the talk begins with another answer: {talk}")
    (script,) = (b.removeprefix("python\n") for b in blocks("README.md") if b.startswith("python"))
    printed = run(["bash", "-c", f"{activate} && python - 2>/dev/null"], folder, script)
    expect(printed.rstrip() == answer, f"transformers answers {printed!r}, we {answer!r}")
    again = subprocess.run(
        ["bash", "-c", f"{activate} && {next(c for c in rest if 'export-hf' in c)}"],
        cwd=folder, capture_output=True, text=True, timeout=COMMAND_SECONDS,
    )  # fmt: skip
    expect(again.returncode == 73 and "--overwrite" in again.stderr, "an export was replaced")


if __name__ == "__main__":
    sys.exit(main())
