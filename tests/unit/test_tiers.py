"""Combinations that `make test` keeps of a matrix."""

import itertools
import os
from pathlib import Path

import pytest

from tests.tiers import assign_workers, covering, full_but

CASES = [
    {"shape": shape, "dtype": dtype, "device": device}
    for shape, dtype, device in itertools.product(range(5), range(3), range(2))
]


@pytest.mark.parametrize(("strength", "least"), [(1, 5), (2, 15), (3, 30)])
def test_every_combination_of_so_many_values_is_kept(strength, least):
    kept = covering(CASES, strength)
    for names in itertools.combinations(CASES[0], strength):
        everything = {tuple(case[name] for name in names) for case in CASES}
        assert everything == {tuple(CASES[i][name] for name in names) for i in kept}
    assert least <= len(kept) <= 1.2 * least


def test_one_parameter_loses_nothing():
    assert covering([{"name": index} for index in range(4)], 2) == {0, 1, 2, 3}


def test_only_named_cases_stay_out_of_the_full_tier():
    first, second, pair = full_but(["a"], ["a", "b", ("b", 2)])
    assert first == "a"
    assert second.values == ("b",) and [mark.name for mark in second.marks] == ["full"]
    assert pair.values == ("b", 2), "two values for two parameters"
    with pytest.raises(AssertionError, match="not among the cases: \\['c'\\]"):
        full_but(["c"], ["a"])


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process has all tests")
def test_the_tests_of_a_file_stay_in_one_process(request):
    assert request.node.nodeid.endswith("@unit/test_tiers"), "pytest-xdist has not seen the group"


class Item:
    """A test of a file, as far as its process depends on it."""

    def __init__(self, path, *fixtures):
        self.path, self.fixturenames, self.group = Path(path), fixtures, None

    def add_marker(self, mark):
        (self.group,) = mark.args


def test_files_that_share_a_fixture_of_the_session_stay_in_one_process():
    items = [
        Item("distributed/test_a.py", "gloo_pool"),
        Item("distributed/test_a.py"),
        Item("integration/test_b.py", "rejection_project"),
        Item("integration/test_b.py", "gloo_pool"),
        Item("integration/test_c.py", "rejection_project"),
        Item("unit/test_d.py", "tmp_path"),
    ]
    assign_workers(items)
    found = [item.group for item in items]
    assert found == ["gloo_pool"] * 4 + ["rejection_project", "unit/test_d"]
