"""Runs a command that is interrupted when the process that started it dies; on Linux only.

    python -m megatron_chimed.workflow.parent_death PID COMMAND ...

PID is the parent. However it ends, the command gets SIGINT (Linux's parent-death signal).
"""

import os
import signal
import sys

from megatron_chimed.errors import run_command
from megatron_chimed.launch.process_tree import interrupt_when_parent_dies


def _run() -> int:
    parent, *command = sys.argv[1:]
    # A shell starts background jobs with SIGINT ignored, which is inherited.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    interrupt_when_parent_dies(int(parent))
    os.execvp(command[0], command)


if __name__ == "__main__":
    sys.exit(run_command(_run))
