"""Finds and kills all descendants of a launcher, on Linux.

torchrun gives each worker a session of its own, so no signal to a process group reaches all of
them, and a killed torchrun leaves them running: they hold the GPUs and the run's lock. A launcher
that adopts orphans (a subreaper) stays the ancestor of all of them and finds them in /proc.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from megatron_chimed.errors import ConfigError, InterruptError, ParallelError

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.05


def adopt_orphans() -> None:
    """Makes this process the parent of each descendant whose own parent dies."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def interrupt_when_parent_dies(parent: int) -> None:
    """Has the kernel send SIGINT to this process when the thread that started it ends.

    Args:
        parent: Process id of the parent. It may have died before this call, while this process was
            starting, and the kernel sends nothing for that.

    Raises:
        InterruptError: The parent has died already.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
    if os.getppid() != parent:
        raise InterruptError(f"process {parent}, which started this one, has died.")


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux":
        raise ConfigError(
            f"the launcher needs Linux's /proc and prctl, and this is {sys.platform}. Start "
            "torchrun itself here."
        )
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}, {value}): {os.strerror(error)}")


def running_children(pid: int) -> list[int]:
    """Children of a process that have not ended; empty when the process itself is gone."""
    return [child for child in _children(pid) if _is_running(child)]


def kill_descendants(patience: float) -> None:
    """Kills and reaps every descendant of this process; returns when none is left.

    Args:
        patience: Seconds to wait until the last one is gone.

    Raises:
        ParallelError: A process does not die, because it waits for a broken driver or disk.
    """
    deadline = time.monotonic() + patience
    while left := _descendants(os.getpid()):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # Only children can be reaped; deeper descendants become ours when their parents die.
        for pid in _children(os.getpid()):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > deadline:
            raise ParallelError(
                f"processes {left} did not die within {patience:g} s of SIGKILL: they wait for a "
                "device or disk that does not respond. Read `dmesg`, and restart this node."
            )
        time.sleep(_POLL_SECONDS)


def _descendants(pid: int) -> list[int]:
    """All processes below this one, parents before children."""
    found = _children(pid)
    for child in found:  # grows during the loop
        found += _children(child)
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    # Gone, or ended during the read (ESRCH)
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    return found


def _is_running(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        # The name before the state may hold spaces and brackets.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False
