"""Python environments with other versions of a library, for the comparisons of `make test-compare`.

`tests/compare/NAME.txt` lists what an environment holds; `make test-compare` installs it into
`.venv-compare/NAME`, once. A comparison starts a script there and reads what it prints.
"""

import json
import os
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 250


def run_in(environment: str, script: str, *words: object) -> Any:
    """The JSON value that a script prints last; skips the test where the environment is missing."""
    python = ROOT / ".venv-compare" / environment / "bin/python"
    if not python.exists():
        pytest.skip(f"no environment {environment}: `make test-compare` installs it")
    done = subprocess.run(
        [str(python), "-c", textwrap.dedent(script), *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
