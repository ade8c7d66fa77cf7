"""A workflow of commands of a few lines, in place of the project's own."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import yaml

from megatron_chimed.workflow.declaration import load_workflow
from megatron_chimed.workflow.preparation import prepare_steps
from megatron_chimed.workflow.runner import run_workflow, show_plan
from megatron_chimed.workflow.staleness import RerunPolicy
from tools.run_pipeline import preset

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_SECONDS = 60

# Joins its inputs; tells by a pipe that it runs, and by its end that it does no more.
TOOL = """
import argparse, os, pathlib, signal, sys
parser = argparse.ArgumentParser()
for flag in ("--input", "--inputs", "--checkpoint", "--prompts"):
    parser.add_argument(flag, nargs="+", default=[])
for flag in ("--output", "--text", "--pipe", "--wait"):
    parser.add_argument(flag, default="")
parser.add_argument("--exit", type=int, default=0)
parser.add_argument("--max-batch", type=int)
parser.add_argument("--nothing", action="store_true")
flags = parser.parse_args()
print(f"joining {len(flags.input)} inputs")

def save(*_):
    pathlib.Path(flags.output).write_text("saved")
    sys.exit(75)

if flags.wait:
    if flags.wait == "save":
        signal.signal(signal.SIGTERM, save)
    with open(flags.pipe, "w") as pipe:
        pipe.write("ready")
        pipe.flush()
        signal.pause()
if flags.exit:
    sys.exit(f"cannot join") if flags.exit == 1 else sys.exit(flags.exit)
text = "".join(pathlib.Path(path).read_text() for path in flags.input) + flags.text
if not flags.nothing:
    pathlib.Path(flags.output).write_text(text)
"""

DRIVER = """
import sys
from megatron_chimed.errors import run_command
from tests.unit.workflow.fakes import Project
sys.exit(run_command(lambda: Project(sys.argv[1]).run()))
"""


@dataclasses.dataclass
class Project:
    """A folder with `pipeline.yaml` and the commands in `tools`."""

    folder: Path

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)
        self.path = self.folder / "pipeline.yaml"
        self.out = self.folder / "out"
        self.tools = self.folder / "tools"

    def declare(self, steps: dict, **more) -> None:
        content = {"folder": str(self.out), "steps": steps, **more}
        self.path.write_text(yaml.safe_dump(content, sort_keys=False))

    def prepared(self):
        workflow = load_workflow(self.path)
        return workflow, prepare_steps(workflow, self.tools, preset)

    def run(self, **policy) -> int:
        return run_workflow(*self.prepared(), RerunPolicy(**policy))

    def plan(self, **policy) -> None:
        show_plan(*self.prepared(), RerunPolicy(**policy))

    def spawn(self) -> subprocess.Popen:
        command = [sys.executable, "-c", DRIVER, str(self.folder)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)

    def ledger(self) -> dict:
        return json.loads((self.out / "ledger.json").read_text())

    def starts(self) -> dict[str, int]:
        """How often each step was started, ever."""
        ledger = self.ledger()
        counts = {name: len(record["attempts"]) for name, record in ledger["steps"].items()}
        for item in ledger["replaced"]:
            counts[item["step"]] = counts.get(item["step"], 0) + len(item["record"]["attempts"])
        return counts


def make_project(folder: Path) -> Project:
    """A project whose commands are all the same one."""
    project = Project(folder)
    project.tools.mkdir()
    for name in ("train_tokenizer", "generate", "preprocess_data"):
        (project.tools / f"{name}.py").write_text(TOOL)
    (folder / "a.txt").write_text("a")
    return project
