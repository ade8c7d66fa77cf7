"""Options and fixtures that all tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.distributed.pool import GlooPool
from tests.tiers import assign_tiers

# How long an example takes says nothing on a busy machine.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parent.parent

# Deterministic jobs need it before CUDA starts, which other tests of this process may have done.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--real-data DIR`."""
    parser.addoption(
        "--real-data",
        metavar="DIR",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="folder of real texts and tokenizers (default: ../shared/data beside the repository); "
        "tests that need it are skipped where it is absent",
    )


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives every test its tier."""
    assign_tiers(items)


@pytest.fixture(scope="session")
def real_data(request: pytest.FixtureRequest) -> Path:
    """The folder of real texts; skips the test where there is none."""
    folder = request.config.getoption("--real-data")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder (option --real-data DIR)")
    return folder


@pytest.fixture(scope="session")
def gloo_pool() -> Iterator[GlooPool]:
    """Worker processes for distributed tests: `gloo_pool.run(function, world_size, ...)`."""
    pool = GlooPool()
    yield pool
    pool.close()
