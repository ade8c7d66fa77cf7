"""The launcher that tests of this folder start."""

import pytest

from tests.unit.launch.agents import start_launcher


@pytest.fixture
def supervise(tmp_path):
    """Starts launchers; none outlives the test."""
    started = []

    def start(agent, node_rank=0, **limits):
        started.append(start_launcher(tmp_path, agent, node_rank, **limits))
        return started[-1]

    yield start
    for launcher in started:
        launcher.kill()
        launcher.communicate()
