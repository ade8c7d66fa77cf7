"""The kernels' own tests on the device, by pytest in a process of its own."""

import importlib.util
import subprocess
import sys
import xml.etree.ElementTree as ET

from device_items.context import Context
from device_items.environment import ROOT
from device_items.record import Goal

LONGEST_SECONDS = 300  # the item's own limit ends it sooner
WORKERS = ("-n", "4", "--dist", "loadfile")


def run(context: Context) -> None:
    """How many passed; the names of those that did not."""
    report = context.folder / "tests.xml"
    spread = WORKERS if importlib.util.find_spec("xdist") and not context.is_rehearsal else ()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *spread]
    command += [*context.plan.tests, f"--junitxml={report}"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST_SECONDS, check=False
    )
    output = (done.stdout + done.stderr)[-4000:]
    if not report.is_file():
        raise RuntimeError(f"pytest ended with {done.returncode} and wrote no report:\n{output}")
    cases = list(ET.parse(report).iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or _broke(case)]
    skipped = [case for case in cases if case.find("skipped") is not None]
    names = [f"{case.get('classname')}::{case.get('name')}" for case in bad]
    passed = len(cases) - len(bad) - len(skipped)
    add = context.record.add
    add("tests passed", passed, goal=Goal(at_least=1), skipped=len(skipped))
    add("tests failed", len(bad), goal=Goal(equals=0), names=names, output=output if bad else "")


def _broke(case: ET.Element) -> bool:
    return case.find("error") is not None
