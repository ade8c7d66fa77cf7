"""Runs a command that does not outlive the pipeline which started it, where the system is Linux.

    python -m megatron_chimed.workflow.tether PID COMMAND ...

When process PID, the one that starts this, is gone, however it ended, the command is interrupted.
"""

import os
import signal
import sys

from megatron_chimed.errors import run_command
from megatron_chimed.launch.processes import interrupt_with_parent


def _run() -> int:
    parent, *command = sys.argv[1:]
    # A pipeline in the background may have been started with SIGINT ignored, which is inherited.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    interrupt_with_parent()
    if os.getppid() != int(parent):  # it was gone before
        return 128 + signal.SIGINT
    os.execvp(command[0], command)


if __name__ == "__main__":
    sys.exit(run_command(_run))
