"""The demo's output folder and the commands it runs there."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_chimed import files
from megatron_chimed.errors import ChimedError, ConfigError

ROOT = Path(__file__).resolve().parent.parent.parent
MARKER = ".quickstart"
RANKS = 2


class StepError(ChimedError):
    """A step of the demo failed, or did not do its work."""


class Demo:
    """The output folder and the steps done so far."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count, self.started = folder, 0, time.monotonic()

    def clear(self) -> None:
        """Makes the folder anew.

        Raises:
            ConfigError: It holds something that no demo made.
        """
        folder = self.folder
        if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
            raise ConfigError(
                f"{folder} is not empty and was not made by this demo. Give another --output."
            )
        files.remove(folder)
        folder.mkdir(parents=True)
        (folder / MARKER).touch()

    @property
    def seconds(self) -> float:
        """Time since the demo started."""
        return time.monotonic() - self.started

    def say(self, text: str) -> None:
        """Prints a numbered step."""
        self.count += 1
        print(f"\n[{self.count}] {text}  ({self.seconds:.0f} s so far)", flush=True)

    def show(self, text: str) -> None:
        """Prints a finding of the step."""
        print("\n".join(f"      {line}" for line in text.splitlines()), flush=True)

    def run(self, *command: str | Path) -> None:
        """Runs one of the project's commands, showing and logging what it prints.

        Raises:
            StepError: It failed.
        """
        words = [str(word) for word in command]
        print("    $ " + shlex.join(words), flush=True)
        runner = [sys.executable] if words[0].endswith(".py") else [sys.executable, "-m"]
        log = self.folder / "logs" / f"{self.count:02d}.log"
        log.parent.mkdir(exist_ok=True)
        code = self._follow([*runner, *words], log)
        if code:
            raise StepError(f"`{words[0]}` ended with code {code}. Read {log}.")

    def run_ranks(self, tool: str, *flags: str | Path) -> None:
        """The same on two ranks.

        Raises:
            StepError: It failed.
        """
        self.run("tools/launch.py", "--nproc-per-node", str(RANKS), tool, *flags)

    def _follow(self, words: Sequence[str], log: Path) -> int:
        """Runs a process, prints its lines but torchrun's warnings, and returns its code.

        Raises:
            KeyboardInterrupt: Ctrl-C, which the process got too; it has ended.
        """
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with (
            open(log, "a", encoding="utf-8") as stream,
            subprocess.Popen(
                words,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as process,
        ):
            try:
                for line in process.stdout:
                    stream.write(line)
                    if line.strip() and not line.startswith(("W1", "[W", "***")):
                        self.show(line.rstrip())
            except KeyboardInterrupt:
                process.terminate()  # what it might save, no other start would read
                stream.writelines(process.stdout)
                raise
        return process.returncode
