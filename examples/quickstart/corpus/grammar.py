"""The template language: `[a|b|c]` picks one, nested as deep as one likes; `{slot}` is filled in.

A slot is `{field}` or `{field:count:separator:link}`; `{low~high}` is a number of as many decimals
as `low`. Square brackets, braces and bars are therefore never text.
"""

import random
import re
from collections.abc import Callable

CHOICE = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"\{(\d+(?:\.\d+)?)~(\d+(?:\.\d+)?)\}")


def expand(template: str, fill: Callable[[str], str], rng: random.Random) -> str:
    """Makes one text of a template.

    Args:
        template: Text with choices and slots.
        fill: Gives the text of a slot, called with what stands between its braces.
        rng: The source of all choices.
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
