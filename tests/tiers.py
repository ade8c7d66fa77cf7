"""Which tests of a large matrix `make test` runs, and which are left to `make test-full`.

A test's tier follows from its marks: `full` is run by `make test-full` alone, `compare` by
`make test-compare` alone, every other one by `make test`.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import pytest

TIERS = ("full", "compare")
SHARED_FIXTURES = ("gloo_pool", "rejection_project")
"""Fixtures of a whole session that take long to make; gloo_pool runs up to four ranks."""


def full_but(kept: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """Cases for `parametrize`, all marked `full` but those of `kept`; a tuple is several values."""
    kept, cases = list(kept), list(cases)
    unknown = [case for case in kept if case not in cases]
    assert not unknown, f"kept cases that are not among the cases: {unknown}"
    return [case if case in kept else _full(case) for case in cases]


def _full(case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.full)


def assign_tiers(items: Sequence[pytest.Item]) -> None:
    """Marks as `full` what a `t_way` mark leaves out, and users of the pool as `ranks`.

    Raises:
        UsageError: A test has the marks of two tiers.
    """
    families: dict[Any, list[pytest.Item]] = {}
    for item in items:
        tiers = [name for name in TIERS if item.get_closest_marker(name)]
        if len(tiers) > 1:
            raise pytest.UsageError(f"{item.nodeid} has marks of two tiers: {' and '.join(tiers)}")
        if "gloo_pool" in _fixtures(item):
            item.add_marker(pytest.mark.ranks)
        if item.get_closest_marker("t_way") and not tiers and not item.get_closest_marker("gpu"):
            families.setdefault((item.path, item.originalname), []).append(item)
    for family in families.values():
        (strength,) = family[0].get_closest_marker("t_way").args
        cases = [
            {name: repr(value) for name, value in item.callspec.params.items()} for item in family
        ]
        kept = covering(cases, strength)
        for index, item in enumerate(family):
            if index not in kept:
                item.add_marker(pytest.mark.full)


def assign_workers(items: Sequence[pytest.Item]) -> None:
    """Says which tests follow one another in one process where pytest-xdist runs several.

    Those of a file do, to share its fixtures. So do all files that use a fixture of
    `SHARED_FIXTURES`, the first of them if they use several: it is made once, and two jobs of four
    ranks at once would mostly wait for one another.
    """
    used: dict[Any, set[str]] = {}
    for item in items:
        used.setdefault(item.path, set()).update(_fixtures(item))
    for item in items:
        file = f"{item.path.parent.name}/{item.path.stem}"
        name = next((fixture for fixture in SHARED_FIXTURES if fixture in used[item.path]), file)
        item.add_marker(pytest.mark.xdist_group(name))


def _fixtures(item: pytest.Item) -> Sequence[str]:
    return getattr(item, "fixturenames", ())


def covering(cases: Sequence[dict[str, Any]], strength: int) -> set[int]:
    """Indices of cases that together hold what all hold of `strength` parameters' values.

    Greedy, the first of equals: the same cases give the same answer on every machine.

    Args:
        cases: Value, which can be hashed, by parameter.
        strength: 1 keeps every value of each parameter, 2 every pair of values of two, ...
    """
    held = [set(combinations(sorted(case.items()), min(strength, len(case)))) for case in cases]
    missing = set().union(*held)
    kept = set()
    while missing:
        best = max(range(len(cases)), key=lambda index: len(held[index] & missing))
        missing -= held[best]
        kept.add(best)
    return kept
