"""AdamW with apex semantics, as megatron-core's optimizers expect of a fused Adam.

The step count lives in the parameter group, not in each parameter's state, and the state of a
parameter is exactly `exp_avg` and `exp_avg_sq` in fp32. megatron-core's distributed optimizer
relies on both. megatron-core calls `step()` without arguments, so what a step needs besides, the
factor of the gradients and the op, are attributes.
"""

import inspect
from collections.abc import Iterable
from typing import Any

import torch

from megatron_chimed.kernels.adamw import AdamWStep, adamw_
from megatron_chimed.kernels.host_state import HostState


class FusedAdam(torch.optim.Optimizer):
    """AdamW with decoupled weight decay over fp32 parameters.

    Args:
        params: Parameters or parameter groups, all fp32.
        lr: Learning rate.
        betas: Decay rates of the first and second moment.
        eps: Added to the denominator.
        weight_decay: Decoupled decay, applied as `p -= lr * weight_decay * p`.
        adam_w_mode: Must be True; megatron-core passes it.

    Attributes:
        adamw: The op that makes the update; its back end is chosen by who builds the optimizer.
        grad_scale: Factor of all gradients in the next step: 1 / loss scale, times the clip
            coefficient.
        copies: Parameter to its fp16 or bf16 twin, of the same shape, which receives the new
            value. Every parameter of a group has one or none has.
        host: Keeps master weights and moments in host memory; None: all is on the device.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization (arXiv 1711.05101),
    algorithm 2 with a constant schedule multiplier.
    """

    # torch's own, without the wrapper that loads torch._dynamo on the first call (1 CPU-second).
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
    ) -> None:
        assert adam_w_mode, "only decoupled weight decay is built"
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        for group in self.param_groups:
            group.setdefault("step", 0)
        self.adamw = adamw_
        self.grad_scale = 1.0
        self.copies: dict[torch.Tensor, torch.Tensor] = {}
        self.host: HostState | None = None

    def move_to_host(self) -> None:
        """Keeps master weights and moments in host memory from now on; before the first step."""
        assert not self.state, "the moments are already on the device"
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.host = HostState(parameters, self.copies)

    def master(self, parameter: torch.Tensor) -> torch.Tensor:
        """The fp32 values of a parameter, wherever they are kept."""
        return parameter if self.host is None else self.host.master(parameter)

    def initialize_state(self) -> None:
        """Gives every parameter zero moments, so that a checkpoint can be read into them."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._moments(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Updates every parameter that has a gradient, in place."""
        assert closure is None, "a closure is never used here"
        for group in self.param_groups:
            group["step"] += 1
            parameters = [p for p in group["params"] if p.grad is not None and p.numel()]
            if not parameters:
                continue
            moments = [self._moments(p) for p in parameters]
            settings = AdamWStep(
                lr=group["lr"],
                step=group["step"],
                betas=group["betas"],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                grad_scale=self.grad_scale,
            )
            if self.host is not None:
                self.host.update(parameters, moments, settings)
                continue
            self.adamw(
                parameters,
                [p.grad for p in parameters],
                exp_avgs=[m["exp_avg"] for m in moments],
                exp_avg_sqs=[m["exp_avg_sq"] for m in moments],
                copies=[self.copies[p] for p in parameters] if self.copies else (),
                settings=settings,
            )

    def _moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        state = self.state[parameter]
        if not state:
            assert parameter.dtype == torch.float32, f"Adam runs in fp32, not {parameter.dtype}"
            for name in ("exp_avg", "exp_avg_sq"):
                if self.host is not None:
                    state[name] = self.host.empty_like(parameter).zero_()
                else:  # contiguous even where a parameter is a range of a distributed buffer
                    dense = torch.contiguous_format
                    state[name] = torch.zeros_like(parameter, memory_format=dense)
        return state
