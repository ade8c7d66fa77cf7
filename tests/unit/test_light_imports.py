"""The packages that tools start with load no torch, themselves or through what they import."""

import subprocess
import sys

import pytest

from tests.layering import LIGHT_OWNERS, PACKAGE

IMPORT_ALL = """
import importlib, pkgutil, sys
owner = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(getattr(owner, "__path__", []), owner.__name__ + "."):
    importlib.import_module(module.name)
loaded = sorted(name for name in ("torch", "megatron.core", "transformers") if name in sys.modules)
print("loaded:", *loaded)
"""


@pytest.mark.parametrize("owner", sorted(LIGHT_OWNERS))
def test_importing_all_modules_of_a_light_package_loads_no_torch(owner):
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, f"{PACKAGE}.{owner}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "loaded:"
