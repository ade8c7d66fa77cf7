"""megatron-core's optimizers, plain and distributed, behind one interface.

Both keep fp32 master weights (megatron-core's "main parameters") and Adam moments; they differ in
which rank holds which shard. `shards` describes that in terms of the global tensors, which is all
that a checkpoint needs: switching the distributed optimizer is a change of layout like any other.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import (
    ChainedOptimizer,
    OptimizerConfig,
    get_megatron_optimizer,
)
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_chimed.config.optim import OptimConfig
from megatron_chimed.config.parallel import ParallelLayout
from megatron_chimed.engine.settings import EngineSettings
from megatron_chimed.engine.shards import (
    ShardSpec,
    TensorShard,
    flat_shards,
    row_shards,
)
from megatron_chimed.engine.shared_rows import SharedGradients
from megatron_chimed.errors import NumericError
from megatron_chimed.kernels import AUTO, FusedAdam, Kernels

CLIP_EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_ and megatron-core


@dataclass(frozen=True, kw_only=True)
class UpdateResult:
    """Result of one optimizer step."""

    grad_norm: float
    """L2 norm of the whole model's gradient before clipping; NaN when the step was skipped."""
    skipped: bool
    """fp16 only: the scaled gradients overflowed, and no weight was changed."""
    loss_scale: float


class Optimizer:
    """One optimizer over the DDP-wrapped chunks of this rank.

    A step reads the gradients twice, once for their norm and once for the update: unscaling,
    clipping and the copy into half-precision weights are part of the update.
    """

    def __init__(
        self,
        chunks: Sequence[DistributedDataParallel],
        settings: EngineSettings,
        layout: ParallelLayout,
        *,
        config: OptimConfig,
        shared: SharedGradients,
        kernels: Kernels = AUTO,
    ) -> None:
        megatron_config = OptimizerConfig(
            optimizer="adam",
            lr=config.lr,  # replaced before the first step
            min_lr=0.0,
            weight_decay=config.weight_decay,
            adam_beta1=config.adam_beta1,
            adam_beta2=config.adam_beta2,
            adam_eps=config.adam_eps,
            clip_grad=config.clip_grad,
            bf16=settings.bf16,
            fp16=settings.fp16,
            params_dtype=settings.params_dtype,
            use_distributed_optimizer=layout.config.distributed_optimizer,
            overlap_param_gather=layout.config.overlap_param_gather,
            initial_loss_scale=config.initial_loss_scale,
            loss_scale_window=config.loss_scale_window,
        )
        chained = get_megatron_optimizer(
            megatron_config, list(chunks), use_gloo_process_groups=False
        )
        assert isinstance(chained, ChainedOptimizer), f"built {type(chained)}"
        assert len(chained.chained_optimizers) == 1, "dense models have one optimizer"
        # Any: what is used of it beyond its base class has no type in megatron-core.
        self._megatron: Any = chained.chained_optimizers[0]
        assert isinstance(self.inner, FusedAdam), f"built {type(self.inner)}, not FusedAdam"
        self._chunks, self._clip_grad, self._kernels = chunks, config.clip_grad, kernels
        self._shared = shared
        self._scaler = getattr(self._megatron, "grad_scaler", None)
        self.inner.adamw = kernels.adamw_
        self.inner.copies = dict(self._twins())
        if config.offload:
            self.inner.move_to_host()
        # Our update writes the half-precision weights itself.
        self._megatron._copy_main_params_to_model_params = _nothing
        for group in self.inner.param_groups:  # norms (1-D) have the factor 0
            group["weight_decay"] = config.weight_decay * group["wd_mult"]

    @property
    def inner(self) -> FusedAdam:
        """The Adam that holds the moments."""
        return self._megatron.optimizer

    def scale_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss times the loss scale of fp16; unchanged in other precisions."""
        return self._megatron.scale_loss(loss)

    def zero_grad(self) -> None:
        """Drops the gradients of the previous step, with the buffers that they were summed in."""
        self._megatron.zero_grad(set_to_none=True)
        for chunk in self._chunks:
            chunk.zero_grad_buffer()

    def update(self, *, learning_rate: float) -> UpdateResult:
        """Unscales, clips by the global norm and steps. Collective over all ranks.

        Raises:
            NumericError: The gradient norm is not finite; the same on every rank, and no weight was
                changed.
        """
        for group in self.inner.param_groups:
            group["lr"] = learning_rate * group["lr_mult"]
        scaled_norm, loss_scale = self._scaled_norm()
        is_finite = math.isfinite(scaled_norm)
        if self._scaler is not None:
            self._scaler.update(not is_finite)
            if not is_finite:
                return UpdateResult(grad_norm=math.nan, skipped=True, loss_scale=loss_scale)
        grad_norm = scaled_norm / loss_scale
        if not is_finite:
            raise NumericError(
                f"the gradient norm is {grad_norm}: no weight was changed. Look at the data of "
                "this step, lower --optim.lr, or use --training.precision bf16 instead of fp16."
            )
        clip = self._clip_grad / (grad_norm + CLIP_EPS) if self._clip_grad > 0 else 1.0
        self.inner.grad_scale = min(1.0, clip) / loss_scale
        self._megatron.step_with_ready_grads()
        return UpdateResult(grad_norm=grad_norm, skipped=False, loss_scale=loss_scale)

    def _scaled_norm(self) -> tuple[float, float]:
        """Norm of the whole model's gradient times the loss scale, and that scale.

        Infinite or NaN if any gradient is. Waits for the device once.
        """
        if self._scaler is None:
            self._megatron.prepare_grads()
        else:  # its prepare_grads would unscale in a pass of its own
            self._megatron._copy_model_grads_to_main_grads()
        gradients = self._megatron.get_main_grads_for_grad_norm()
        device = torch.cuda.current_device()
        squares = torch.zeros((), device=device)
        if gradients:  # a rank's shard may hold nothing but copies of others' parameters
            squares = self._kernels.l2_norm(gradients).square()
        if counted := self._gradients_counted_elsewhere():
            squares = squares - self._kernels.l2_norm(counted).square()
        dist.all_reduce(squares, group=self._megatron.get_grad_stats_parallel_group())
        if self._scaler is None:
            return math.sqrt(squares.item()), 1.0
        total, loss_scale = torch.stack([squares, self._scaler.scale.squeeze()]).tolist()
        return math.sqrt(total), loss_scale

    def _gradients_counted_elsewhere(self) -> list[torch.Tensor]:
        """What `get_main_grads_for_grad_norm` gives on several ranks though it is one gradient."""
        found = []
        for held in self._shared.counted_elsewhere():
            main, start = self._master_weight(held.parameter)
            if main is None or main.grad is None:
                continue
            first, end = (element - (start or 0) for element in held.elements)
            found.append(main.grad.reshape(-1)[max(first, 0) : max(end, 0)])
        return [gradient for gradient in found if gradient.numel()]

    def _twins(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(fp32 master weight, the half-precision weight it belongs to)."""
        if isinstance(self._megatron, DistributedOptimizer):
            models = self._megatron.model_float16_groups
            mains = self._megatron.shard_fp32_from_float16_groups
        else:
            models = getattr(self._megatron, "float16_groups", [])
            mains = getattr(self._megatron, "fp32_from_float16_groups", [])
        for model_group, main_group in zip(models, mains, strict=True):
            for model, main in zip(model_group, main_group, strict=True):
                if isinstance(self._megatron, DistributedOptimizer):
                    place = self._megatron._get_model_param_range_map(model)["param"]
                    yield main, model.detach().view(-1)[place.start : place.end]
                else:
                    yield main, model.detach()

    def reset_master_weights(self) -> None:
        """Copies weights that were loaded alone into the fp32 master weights."""
        if self.inner.host is None:
            self._megatron.reload_model_params()
        else:
            self.inner.host.reload()

    def shards(
        self, specs: Mapping[torch.nn.Parameter, Sequence[ShardSpec]]
    ) -> Iterator[TensorShard]:
        """Every shard of optimizer state that this rank holds, as views of live memory.

        Keys are `exp_avg.<key>`, `exp_avg_sq.<key>` and, where parameters are not fp32,
        `master.<key>`.

        Args:
            specs: What each parameter of the model holds.
        """
        self.inner.initialize_state()
        for parameter, held in specs.items():
            if not parameter.requires_grad:
                continue
            main, start = self._master_weight(parameter)
            if main is None:
                continue
            tensors = {f"{name}.": moment for name, moment in self.inner.state[main].items()}
            if parameter.dtype != torch.float32:
                tensors["master."] = self.inner.master(main)
            for prefix, tensor in tensors.items():
                if start is None:
                    yield from row_shards(held, tensor, prefix=prefix)
                else:
                    yield from flat_shards(
                        held, parameter.shape, tensor.view(-1), start=start, prefix=prefix
                    )

    def _master_weight(
        self, parameter: torch.nn.Parameter
    ) -> tuple[torch.Tensor | None, int | None]:
        """The tensor that Adam updates; if that is a flat range of the parameter, its start too."""
        if not isinstance(self._megatron, DistributedOptimizer):
            # Half-precision parameters carry their fp32 copy; fp32 ones are updated themselves.
            return getattr(parameter, "main_param", parameter), None
        place = self._megatron.model_param_group_index_map.get(parameter)
        if place is None:  # this rank's shard of the buffer holds nothing of it
            return None, None
        group, index = place
        main = self.inner.param_groups[group]["params"][index]
        return main, self._megatron._get_model_param_range_map(parameter)["param"].start

    def state(self) -> dict[str, float | int]:
        """Step count and loss scale, which a checkpoint keeps beside the tensors."""
        state: dict[str, float | int] = {
            "step": max(group["step"] for group in self.inner.param_groups)
        }
        if self._scaler is not None:
            state |= {name: _plain(value) for name, value in self._scaler.state_dict().items()}
        return state

    def load_state(self, state: Mapping[str, float | int]) -> None:
        """Restores a result of `state`."""
        for group in self.inner.param_groups:
            group["step"] = int(state["step"])
        if self._scaler is not None and "scale" in state:
            self._scaler.load_state_dict(
                {
                    "scale": torch.tensor([float(state["scale"])]),
                    "growth_tracker": int(state["growth_tracker"]),
                    "hysteresis_tracker": int(state["hysteresis_tracker"]),
                }
            )


def _plain(value: torch.Tensor | float | int) -> float | int:
    return value.item() if isinstance(value, torch.Tensor) else value


def _nothing() -> None:
    pass
