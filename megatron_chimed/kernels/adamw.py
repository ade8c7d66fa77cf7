"""One AdamW step over many tensors: unscaling, clipping, update and low-precision copy at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels.checks import check_float, check_shape
from megatron_chimed.kernels.native import FusedOp, use_fused
from megatron_chimed.kernels.schemas import define

ADAMW = FusedOp(name="adamw", kernel="adamw_")

define(
    "adamw_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs,"
    " Tensor(d!)[] copies, float lr, float beta1, float beta2, float eps, float weight_decay,"
    " int step, float grad_scale) -> ()",
    lambda *_: None,
)

Tensors = Sequence[torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class AdamWStep:
    """Hyperparameters of one step."""

    lr: float
    """Learning rate."""

    step: int
    """Index of this step, from 1."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the first and second moment."""

    eps: float = 1e-8
    """Added to the denominator."""

    weight_decay: float = 0.0
    """Decoupled decay: param -= lr * weight_decay * param."""

    grad_scale: float = 1.0
    """Factor of all gradients: 1 / loss scale, times the clip coefficient."""

    def __post_init__(self) -> None:
        if self.step < 1:
            raise KernelError(f"adamw: step is {self.step}, expected at least 1.")


def adamw_(
    params: Tensors,
    grads: Tensors,
    *,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    copies: Tensors = (),
    settings: AdamWStep,
    backend: str = "auto",
) -> None:
    """Updates parameters, moments and copies in place.

    Args:
        params: Master parameters, fp32, contiguous.
        grads: Of the same shapes; fp32, fp16 or bf16; multiplied by `settings.grad_scale` first.
        exp_avgs: First moments, fp32, contiguous.
        exp_avg_sqs: Second moments, fp32, contiguous.
        copies: Twins of the parameters in fp16 or bf16 that receive the new values; or none.
        settings: The numbers of this step.
        backend: See `native.implementation`.

    Raises:
        KernelError: An argument does not fit.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization (arXiv 1711.05101),
    algorithm 2.
    """
    lists = {"grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "copies": copies}
    _check(params, lists)
    if not params:
        return
    if not use_fused(ADAMW, backend, params[0]):
        adamw_reference_(params, lists, settings)
        return
    torch.ops.chimed.adamw_(
        params,
        [grad.contiguous() for grad in grads],
        exp_avgs,
        exp_avg_sqs,
        copies,
        settings.lr,
        *settings.betas,
        settings.eps,
        settings.weight_decay,
        settings.step,
        settings.grad_scale,
    )


@torch.no_grad()
def adamw_reference_(params: Tensors, lists: dict[str, Tensors], settings: AdamWStep) -> None:
    """What the kernel computes, in plain torch, tensor by tensor."""
    beta1, beta2 = settings.betas
    correction1, correction2 = 1.0 - beta1**settings.step, 1.0 - beta2**settings.step
    for index, param in enumerate(params):
        grad = lists["grads"][index].float() * settings.grad_scale
        m, v = lists["exp_avgs"][index], lists["exp_avg_sqs"][index]
        m.lerp_(grad, 1.0 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
        param.mul_(1.0 - settings.lr * settings.weight_decay)
        denominator = (v.sqrt() / correction2**0.5).add_(settings.eps)
        param.addcdiv_(m, denominator, value=-settings.lr / correction1)
        if lists["copies"]:
            lists["copies"][index].copy_(param)


def _check(params: Tensors, lists: dict[str, Tensors]) -> None:
    for name, tensors in lists.items():
        if len(tensors) != len(params) and (name != "copies" or tensors):
            raise KernelError(
                f"adamw: {name} has {len(tensors)} tensors, expected {len(params)}, one for each "
                "parameter."
            )
    for index, param in enumerate(params):
        for name, tensors in {"params": params, **lists}.items():
            if tensors:
                _check_tensor(f"{name}[{index}]", tensors[index], param)


def _check_tensor(name: str, tensor: torch.Tensor, param: torch.Tensor) -> None:
    check_float("adamw", **{name: tensor})
    check_shape("adamw", name, tensor, tuple(param.shape))
    if tensor.device != param.device:
        raise KernelError(
            f"adamw: {name} is on {tensor.device}, its parameter on {param.device}: expected one "
            "device."
        )
    if name.startswith(("params", "exp_avg")) and tensor.dtype != torch.float32:
        raise KernelError(f"adamw: {name} is {tensor.dtype}, expected torch.float32.")
    if not name.startswith("grads") and not tensor.is_contiguous():
        raise KernelError(
            f"adamw: {name} has strides {tensor.stride()}, expected a contiguous tensor: it is "
            "changed in place."
        )
