"""Formats numbers, estimates and Markdown tables for reports."""

import math
from collections.abc import Sequence
from typing import TypeAlias

from megatron_chimed.rejection.report.metrics import Estimate

Value: TypeAlias = float | Estimate | tuple[float, ...] | None
SHOWN_KL = {"kl": 1e-3, "kl_per_token": 1e-4}  # value of the last digit shown


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is 1."""
    return f"{number:,} {noun}" + ("s" if number != 1 else "")


def cell(value: Value, spec: str, *, brief: bool = False) -> str:
    """A value as a table cell; "" for None.

    Args:
        value: A number, an estimate, or a tuple of numbers.
        spec: Format of each number.
        brief: Without standard errors and without tuples, for a narrow terminal.
    """
    if value is None or (brief and isinstance(value, tuple)):
        return ""
    if isinstance(value, tuple):
        return " / ".join(_number(item, spec) for item in value)
    if not isinstance(value, Estimate):
        return _number(value, spec)
    if brief or value.error is None:
        return _number(value.mean, spec)
    return f"{_number(value.mean, spec)} ± {_number(value.error, spec.lstrip('+'))}"


def markdown(
    names: Sequence[str], rows: Sequence[Sequence[str]], *, texts: Sequence[int] = (0,)
) -> str:
    """A Markdown table with text columns aligned left and numbers right; "" without rows."""
    if not rows:
        return ""
    marks = [":--" if column in texts else "--:" for column in range(len(names))]
    lines = [names, marks, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def is_negative_kl(field: str, value: Value) -> bool:
    """Whether a KL divergence is shown as negative; the first policy's own is 0 up to rounding."""
    if field not in SHOWN_KL or not isinstance(value, Estimate):
        return False
    return value.mean <= -SHOWN_KL[field] / 2


def from_to(old: float, new: float, spec: str) -> str:
    """Two values, before and after."""
    return f"{old:{spec}} -> {new:{spec}}"


def with_interval(change: Estimate, spec: str) -> str:
    """A change with its confidence interval, if there is one."""
    if change.interval is None:
        return f"{change.mean:{spec}}"
    low, high = change.interval
    return f"{change.mean:{spec}} (95% interval {low:{spec}} to {high:{spec}})"


def _number(value: float, spec: str) -> str:
    """A formatted number; NaN is "undefined", and zero has no minus."""
    if math.isnan(value):
        return "undefined"
    text = f"{value:{spec}}"
    return text.removeprefix("-") if not text.strip("-0.%") else text
