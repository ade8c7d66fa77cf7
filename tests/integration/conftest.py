"""Fixtures that several files of these tests share."""

import pytest

from tests.integration import rejection


@pytest.fixture(scope="session")
def rejection_project(tmp_path_factory):
    """A folder with a policy, its judge and prompts; tests add folders of rounds."""
    return rejection.make_project(tmp_path_factory.mktemp("rejection"))
