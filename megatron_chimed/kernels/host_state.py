"""Adam's state in host memory: master weights and moments stay there, gradients and weights travel.

A step copies each gradient down, updates on the CPU with the compiled AdamW, and copies the new
weight up. Tensors take turns in two staging buffers, so on CUDA the copies of one tensor run beside
the update of another. The numbers are those of the same update on the CPU without staging, bit for
bit.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from megatron_chimed.kernels.adamw import AdamWStep, adamw_

Moments = Mapping[str, torch.Tensor]
"""`exp_avg` and `exp_avg_sq` of a parameter."""


class HostState:
    """Where the Adam state of some device parameters is kept.

    Args:
        parameters: The fp32 tensors that Adam updates. A tensor with a twin is only the master of
            its weight: it moves to host memory, and its own memory is given back. One without is
            the weight itself, and visits the host in each step.
        copies: Parameter to its fp16 or bf16 twin on the device.
    """

    def __init__(
        self, parameters: Iterable[torch.Tensor], copies: Mapping[torch.Tensor, torch.Tensor]
    ) -> None:
        self._copies = copies
        self._masters: dict[torch.Tensor, torch.Tensor] = {}
        longest, dtype, device = 0, torch.float32, torch.device("cpu")
        for parameter in parameters:
            longest, device = max(longest, parameter.numel()), parameter.device
            if parameter in copies:
                dtype = copies[parameter].dtype
                self._masters[parameter] = self.empty_like(parameter).copy_(parameter)
                # Shape and dtype stay: megatron-core compares them and hangs gradients on them.
                parameter.untyped_storage().resize_(0)
        self._staging = [_Staging.allocate(longest, dtype, device) for _ in range(2)]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def master(self, parameter: torch.Tensor) -> torch.Tensor:
        """The fp32 values that Adam updates: in host memory if the parameter has a twin."""
        return self._masters.get(parameter, parameter)

    def reload(self) -> None:
        """Copies the weights on the device into their masters."""
        for parameter, master in self._masters.items():
            master.copy_(self._copies[parameter])

    @staticmethod
    def empty_like(parameter: torch.Tensor) -> torch.Tensor:
        """A dense fp32 tensor of that shape in host memory, pinned if the parameter is on CUDA."""
        return torch.empty(parameter.shape, dtype=torch.float32, pin_memory=parameter.is_cuda)

    def update(
        self,
        parameters: list[torch.Tensor],
        moments: list[Moments],
        settings: AdamWStep,
    ) -> None:
        """One AdamW step of some parameters, all of which have gradients, and of their twins."""
        if self._stream is not None:  # gradients are complete
            self._stream.wait_stream(torch.cuda.current_stream())
        self._fetch(parameters[0], self._staging[0])
        for index, (parameter, state) in enumerate(zip(parameters, moments, strict=True)):
            if index + 1 < len(parameters):
                self._fetch(parameters[index + 1], self._staging[(index + 1) % 2])
            staging = self._staging[index % 2]
            staging.wait()
            gradient, weight = staging.views(parameter)
            twin = self._copies.get(parameter)
            adamw_(
                [weight if twin is None else self._masters[parameter]],
                [gradient],
                exp_avgs=[state["exp_avg"]],
                exp_avg_sqs=[state["exp_avg_sq"]],
                copies=() if twin is None else [weight],
                settings=settings,
            )
            with self._transfers(staging):
                target = parameter if twin is None else twin
                target.copy_(weight.view_as(target), non_blocking=True)
        if self._stream is not None:  # the next reader of the weights waits for them
            torch.cuda.current_stream().wait_stream(self._stream)

    def _fetch(self, parameter: torch.Tensor, staging: "_Staging") -> None:
        assert parameter.grad is not None, "a parameter without a gradient is not updated"
        # The weight of two tensors ago must have left the buffer before the CPU writes there again;
        # `staging.wait` sees to it, as the stream keeps their order.
        with self._transfers(staging):
            gradient, weight = staging.views(parameter)
            gradient.copy_(parameter.grad, non_blocking=True)
            if parameter not in self._copies:
                weight.copy_(parameter, non_blocking=True)

    @contextlib.contextmanager
    def _transfers(self, staging: "_Staging") -> Iterator[None]:
        """Enqueues copies to or from a buffer on a stream of their own."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
            assert staging.done is not None, "a buffer for CUDA has an event"
            staging.done.record()


@dataclass(frozen=True, kw_only=True)
class _Staging:
    """Pinned buffers of one tensor on its way."""

    gradient: torch.Tensor
    weight: torch.Tensor
    """In the dtype of the weights on the device."""
    done: torch.cuda.Event | None
    """The last copy from or to these buffers; None on CPU, where copies are complete at once."""

    @classmethod
    def allocate(cls, longest: int, dtype: torch.dtype, device: torch.device) -> "_Staging":
        pinned = device.type == "cuda"
        return cls(
            gradient=torch.empty(longest, dtype=torch.float32, pin_memory=pinned),
            weight=torch.empty(longest, dtype=dtype, pin_memory=pinned),
            done=torch.cuda.Event() if pinned else None,
        )

    def wait(self) -> None:
        """Waits until the buffers' last copy is complete."""
        if self.done is not None:
            self.done.synchronize()

    def views(self, parameter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The parts of both buffers that a parameter fills, in its shape."""
        count = parameter.numel()
        return self.gradient[:count].view(parameter.shape), self.weight[:count].view(
            parameter.shape
        )
