"""Combinations that `make test` keeps of a matrix."""

import itertools
import os

import pytest

from tests.tiers import covering, full_but

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
