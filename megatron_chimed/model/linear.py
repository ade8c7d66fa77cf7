"""megatron-core's linear layer with the matrix products that are fastest on a CPU."""

from typing import Any

import torch
import torch.distributed as dist

from megatron_chimed.kernels import accumulate_weight_gradient, linear


class CpuProducts:
    """Mixin of megatron-core's parallel layers, which here run on CPU through `_CpuLinear`.

    Not with sequence parallelism, whose collectives megatron-core runs between the products, and
    not without `gradient_accumulation_fusion`, which stands for all fused products.
    """

    tp_group: dist.ProcessGroup

    def _forward_impl(
        self, input: torch.Tensor, weight: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        if (
            weight.device.type != "cpu"
            or not options["gradient_accumulation_fusion"]
            or options["sequence_parallel"]
            or options.get("bias") is not None  # _CpuLinear has none
        ):
            megatron: Any = super()  # the parallel layer that this is mixed into
            return megatron._forward_impl(input=input, weight=weight, **options)
        return _CpuLinear.apply(
            input, weight, self.tp_group if options["allreduce_dgrad"] else None
        )


class _CpuLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, group):
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        ctx.group = group
        return linear(x, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dx = linear(dy, weight.t())
        reduction = dist.all_reduce(dx, group=ctx.group, async_op=True) if ctx.group else None
        dweight = _weight_gradient(x, dy, weight) if ctx.needs_input_grad[1] else None
        if reduction is not None:
            reduction.wait()
        return dx, dweight, None


def _weight_gradient(x: torch.Tensor, dy: torch.Tensor, weight: Any) -> torch.Tensor:
    """The gradient, or where the weight has a buffer for it, what stands for one."""
    if not hasattr(weight, "main_grad"):
        return dy.flatten(0, -2).t() @ x.flatten(0, -2)
    accumulate_weight_gradient(x, dy, weight.main_grad)
    weight.grad_added_to_main_grad = True
    if getattr(weight, "zero_out_wgrad", False):  # a tied embedding: its own gradient is added
        return torch.zeros_like(weight)
    return torch.empty_like(weight)  # not read, but the hook must find one
