"""Confidence intervals of proportions."""

import math

Z_95 = 1.959964  # half the width of a normal distribution's 95 % interval, in standard deviations


def wilson_interval(successes: float, trials: float) -> tuple[float, float]:
    """The 95 % interval of a proportion; within [0, 1] and never empty, however few trials.

    Args:
        successes: At most `trials`.
        trials: At least 1; assumed independent.

    Source: Wilson, Probable inference, the law of succession, and statistical inference (JASA 22,
    1927).
    """
    share, spread = successes / trials, Z_95**2 / trials
    middle = share + spread / 2
    half = Z_95 * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    # Exact at the ends, where rounding could leave the range or miss the share itself.
    low = 0.0 if successes == 0 else (middle - half) / (1 + spread)
    high = 1.0 if successes == trials else (middle + half) / (1 + spread)
    return low, high
