"""The result of verifying one property."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "WRONG", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of verifying one property."""

    what: str
    """The property."""

    verdict: Verdict
    """Whether it holds; `unknown`: there is nothing to compare with."""

    detail: str
    """What was found, with the location of the first fault."""


def checked(what: str, is_good: bool, detail: str) -> Finding:
    """The finding for a property that could be verified."""
    return Finding(what=what, verdict="ok" if is_good else "WRONG", detail=detail)


def unchecked(what: str, detail: str) -> Finding:
    """The finding for a property that could not be verified."""
    return Finding(what=what, verdict="unknown", detail=detail)
