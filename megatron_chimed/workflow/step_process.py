"""Runs one step's command: logs and shows its output, and forwards signals to it."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import TextIO

POLL_SECONDS = 0.2
PARENT_DEATH = "megatron_chimed.workflow.parent_death"


class SignalForwarder:
    """While entered, SIGTERM and Ctrl-C do not end this process but go to the running step.

    The step gets SIGTERM, on which it may save and end, SIGINT at the second Ctrl-C, on which
    training quits without saving, and SIGKILL at the third. The caller reads `is_asked` and decides
    what to do next.
    """

    def __init__(self) -> None:
        self.is_asked = False
        """Whether a signal asked this process to stop."""
        self.is_interrupted = False
        """Whether one of the signals was Ctrl-C."""
        self._escalation = iter((signal.SIGTERM, signal.SIGINT))
        self._process: subprocess.Popen | None = None
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> "SignalForwarder":
        """Installs the handlers."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._restore.callback(signal.signal, number, signal.signal(number, self._record))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restores the previous handlers."""
        self._restore.close()

    def _record(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self.is_interrupted = True
            self._forward(next(self._escalation, signal.SIGKILL))
        else:  # SIGTERM may come twice, and does not escalate
            if not self.is_asked:
                next(self._escalation)
            self._forward(signal.SIGTERM)
        self.is_asked = True

    def _forward(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    @contextlib.contextmanager
    def attached(self, process: subprocess.Popen):
        """Forwards signals to a process group, including one received before."""
        self._process = process
        if self.is_asked:
            self._forward(signal.SIGTERM)
        try:
            yield
        finally:
            self._process = None


def run_logged(
    command: Sequence[str], log: Path, signals: SignalForwarder, show: Callable[[str], None]
) -> int:
    """Runs a command to its end.

    The command writes to the log itself, so no output is lost if this process dies.

    Args:
        command: The command and its arguments.
        log: Its stdout and stderr are appended here.
        signals: Entered by the caller.
        show: Called with each line of output.

    Returns:
        The exit code; 128 + n for signal n.

    Raises:
        OSError: The command or the log cannot be opened.
    """
    if sys.platform == "linux":
        command = [sys.executable, "-m", PARENT_DEATH, str(os.getpid()), *command]
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as sink, open(log, encoding="utf-8", errors="replace") as source:
        source.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        try:
            with signals.attached(process):
                _follow(process, source, show)
        finally:
            if process.poll() is None:  # an error in this process: leave nothing running
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _follow(process: subprocess.Popen, source: TextIO, show: Callable[[str], None]) -> None:
    pending = ""
    is_running = True
    while is_running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
        is_running = process.returncode is None
        *lines, pending = (pending + source.read()).split("\n")
        for line in lines:
            show(line)
    if pending:
        show(pending)
