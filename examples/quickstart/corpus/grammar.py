"""The template language: `[a|b|c]` picks one alternative and can be nested; `{slot}` is filled in.

A slot is `{field}` or `{field:count:separator:link}`; `{low~high}` is a number with the decimals of
`low`. Square brackets, braces and bars are never literal text.
"""

import random
import re
from collections.abc import Callable

CHOICE = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"\{(\d+(?:\.\d+)?)~(\d+(?:\.\d+)?)\}")


def expand(template: str, fill: Callable[[str], str], rng: random.Random) -> str:
    """Makes one text from a template.

    Args:
        template: Text with choices and slots.
        fill: Returns the text of a slot, given the content of its braces.
        rng: Source of all choices.
    """
    choices = 1
    while choices:
        template, choices = CHOICE.subn(lambda m: rng.choice(m[1].split("|")), template)
    return SLOT.sub(lambda m: fill(m[1]), template).strip()


def sample_numbers(text: str, rng: random.Random) -> str:
    """Replaces every `{low~high}` by a number from that range."""

    def number(match: re.Match[str]) -> str:
        low, high = match.groups()
        decimals = len(low.partition(".")[2])
        return f"{rng.uniform(float(low), float(high)):.{decimals}f}"

    return RANGE.sub(number, text)
