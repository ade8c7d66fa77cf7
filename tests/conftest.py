"""Options and fixtures that all tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.distributed.pool import GlooPool, gpus_for_ranks
from tests.tiers import assign_tiers, assign_workers

# How long an example takes says nothing on a busy machine.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parent.parent

# Deterministic jobs need it before CUDA starts, which other tests of this process may have done.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--real-data DIR` and `--gpu`."""
    parser.addoption(
        "--gpu",
        action="store_true",
        help="let the tests use this machine's GPUs; without it they are hidden, and every test "
        "runs as on a machine without one",
    )
    parser.addoption(
        "--real-data",
        metavar="DIR",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="folder of real texts and tokenizers (default: ../shared/data beside the repository); "
        "tests that need it are skipped where it is absent",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Hides the GPUs, before anything imports torch, from this process and all that it starts."""
    if not config.getoption("--gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives every test its tier, and a process where there are several."""
    assign_tiers(items)
    assign_workers(items)


@pytest.fixture(scope="session")
def real_data(request: pytest.FixtureRequest) -> Path:
    """The folder of real texts; skips the test where there is none."""
    folder = request.config.getoption("--real-data")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder (option --real-data DIR)")
    return folder


@pytest.fixture(scope="session")
def gloo_pool(request: pytest.FixtureRequest) -> Iterator[GlooPool]:
    """Worker processes for distributed tests: `gloo_pool.run(function, world_size, ...)`.

    With `--gpu` on a machine of two GPUs or more, the jobs that they join run on nccl.
    """
    pool = GlooPool(num_gpus=gpus_for_ranks(asked=request.config.getoption("--gpu")))
    yield pool
    pool.close()
