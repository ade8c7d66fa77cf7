"""Scripts of benchmarks/ import each other by their own names, as they do when they are run."""

import sys
from pathlib import Path

SCRIPTS = str(Path(__file__).resolve().parents[3] / "benchmarks")
if SCRIPTS not in sys.path:
    sys.path.append(SCRIPTS)
