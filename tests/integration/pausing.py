"""A command that pauses after a training step until its run is asked to stop: started by tests.

    python -m tests.integration.pausing STEP SECONDS TOOL WORDS...
    torchrun ... -m tests.integration.pausing STEP SECONDS TOOL WORDS...

The rank that logs prints `paused` after STEP; it goes on SECONDS after the run was asked to stop.
"""

import importlib
import sys
import time

from megatron_chimed.observe.logger import RunLogger
from megatron_chimed.training import loop
from megatron_chimed.training.preemption import Preemption

LONGEST_SECONDS = 60


def main(argv):
    at, seconds, tool, *words = argv
    entered, original = [], RunLogger.step

    class Known(Preemption):
        def __enter__(self):
            entered.append(self)
            return super().__enter__()

    def step(self, record):
        original(self, record)
        if record.step != int(at):
            return
        print("paused", flush=True)
        deadline = time.monotonic() + LONGEST_SECONDS
        while entered[-1]._number is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(float(seconds))

    RunLogger.step, loop.Preemption = step, Known
    return importlib.import_module(f"tools.{tool}").main(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
