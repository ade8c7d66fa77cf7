"""Rows of parameters that several tensor-parallel ranks hold, each with a part of the gradient.

Key and value heads, where there are more ranks than heads, and the norms of single heads: a rank
computes the gradient of its own query heads alone. The parts are summed once a step, like the
gradients of norms under sequence parallelism. Left out, the loss of some steps is the same to six
digits, so only a comparison of gradients shows it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist

from megatron_chimed.engine.shards import ShardSpec


@dataclass(frozen=True, kw_only=True)
class SharedRows:
    """Rows of a parameter that `copies` neighbouring ranks hold."""

    parameter: torch.nn.Parameter
    first_row: int
    rows: int
    copies: int

    @property
    def elements(self) -> tuple[int, int]:
        """The first and the end of their elements in the flattened parameter."""
        columns = math.prod(self.parameter.shape[1:])
        return self.first_row * columns, (self.first_row + self.rows) * columns


class SharedGradients:
    """All such rows of this rank.

    Args:
        specs: What each parameter holds.
        group: Tensor-parallel group.
    """

    def __init__(
        self,
        specs: Mapping[torch.nn.Parameter, Sequence[ShardSpec]],
        group: dist.ProcessGroup,
    ) -> None:
        self._group = group
        self._held = [
            SharedRows(
                parameter=parameter, first_row=spec.first_row, rows=spec.rows, copies=spec.copies
            )
            for parameter, held in specs.items()
            for spec in held
            if spec.copies > 1 and parameter.requires_grad
        ]

    def sum_gradients(self) -> None:
        """Completes the gradients: each becomes the sum over the ranks that hold the rows.

        One all-reduce over the whole group, in which each set of ranks has a place of its own: no
        further process groups, for more bytes, of few rows.
        """
        for held in self._held:
            gradient = cast(Any, held.parameter).main_grad.narrow(0, held.first_row, held.rows)
            place = self._group.rank() // held.copies
            places = gradient.new_zeros(self._group.size() // held.copies, *gradient.shape)
            places[place] = gradient
            dist.all_reduce(places, group=self._group)
            gradient.copy_(places[place])

    def counted_elsewhere(self) -> list[SharedRows]:
        """Rows that another rank's gradient norm counts already.

        megatron-core counts a split parameter on every rank, and one that is not split on the first
        rank alone.
        """
        return [
            held
            for held in self._held
            if getattr(held.parameter, "tensor_model_parallel", False)
            and self._group.rank() % held.copies
        ]
