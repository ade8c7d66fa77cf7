"""One thing that was verified, and how it went."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "WRONG", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was verified."""

    what: str
    """The property."""

    verdict: Verdict
    """Whether it holds; `unknown`: nothing is there to compare with."""

    detail: str
    """What was found, with the place of the first fault."""


def judge(what: str, is_good: bool, detail: str) -> Finding:
    """A finding of something that could be verified."""
    return Finding(what=what, verdict="ok" if is_good else "WRONG", detail=detail)


def unknown(what: str, detail: str) -> Finding:
    """A finding of something that could not."""
    return Finding(what=what, verdict="unknown", detail=detail)
