"""compute-sanitizer over every op at small, odd sizes: no access out of bounds, no race."""

import os
import re
import shutil
import subprocess
import sys

import device_ops_once

from device_items.context import Context
from device_items.record import Goal

LONGEST_SECONDS = 120  # of one tool; the item's own limit ends it sooner
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")


def run(context: Context) -> None:
    """One row for each tool; a rehearsal runs the program without one."""
    if context.is_rehearsal:
        context.record.add("no tool: errors", device_ops_once.main(["--device", "cpu"]))
    for tool in context.plan.sanitizers:
        found = shutil.which("compute-sanitizer")
        if found is None:
            context.record.unavailable(tool, "compute-sanitizer is not on PATH")
            continue
        command = [found, "--tool", tool, "--error-exitcode", "9", sys.executable]
        command += [device_ops_once.__file__, "--device", context.device]
        # torch's cache would hide an access behind the end of a tensor.
        environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LONGEST_SECONDS,
            check=False,
        )
        output = done.stdout + done.stderr
        counts = [int(count) for count in SUMMARY.findall(output)]
        errors = max(counts) if counts else done.returncode
        goal = Goal(equals=0)
        details = {"exit_code": done.returncode, "output": output[-3000:] if errors else ""}
        context.record.add(f"{tool}: errors", errors, goal=goal, **details)
