"""Selective recomputation: the output of a cheap function is dropped and computed again."""

from collections.abc import Callable
from typing import Any, cast

import torch
from megatron.core.tensor_parallel.random import CheckpointWithoutOutput


class Recomputed:
    """Runs one function so that its output can be dropped after its consumer ran.

    The consumer must be the only one that saved the output for its backward pass. Off (or without
    gradients) it is a plain call.
    """

    def __init__(self, enabled: bool) -> None:
        # fp8=None means off: megatron-core reads any other value, False too, as on.
        active = enabled and torch.is_grad_enabled()
        self._checkpoint = CheckpointWithoutOutput(fp8=cast(bool, None)) if active else None

    def __call__(self, function: Callable, *tensors: torch.Tensor) -> Any:
        """Calls `function(*tensors)`."""
        if self._checkpoint is None:
            return function(*tensors)
        return self._checkpoint.checkpoint(function, *tensors)

    def release(self, consumed_by: torch.Tensor) -> None:
        """Frees the output now; it is computed again when the gradient of `consumed_by` arrives."""
        if self._checkpoint is not None:
            self._checkpoint.discard_output_and_register_recompute(consumed_by)
