"""What the training loop asks of an objective, besides what the engine does."""

from collections.abc import Mapping
from typing import Protocol

from megatron_chimed.engine import Objective, Totals


class TrainingObjective(Objective, Protocol):
    """An objective that also turns the sums of a global batch or a validation into reports."""

    def averages(self, totals: Totals) -> Mapping[str, float]:
        """Metrics to report beside the loss."""
        ...

    def by_source(self, totals: Totals) -> Mapping[str, tuple[float, float]]:
        """(sum of losses, number of tokens) by source of a blend."""
        ...

    def details(self, totals: Totals) -> Mapping[str, list]:
        """Lists of numbers to record for a validation, such as a histogram."""
        ...
