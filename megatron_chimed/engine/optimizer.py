"""megatron-core's optimizers, plain and distributed, behind one face.

Both keep fp32 main parameters and Adam moments; they differ in who holds which part. `slices` says
so in the terms of the global tensors, which is all that a checkpoint needs: turning the distributed
optimizer on or off is then a change of layout like any other.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_chimed.config.parallel import ParallelLayout
from megatron_chimed.engine.settings import EngineSettings
from megatron_chimed.engine.slices import Piece, TensorSlice, flat_slices, row_slices
from megatron_chimed.errors import NumericError
from megatron_chimed.kernels import AUTO, FusedAdam, Kernels

CLIP_EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_ and megatron-core


@dataclass(frozen=True, kw_only=True)
class AdamSettings:
    """What the optimizer needs at construction; the schedule sets rates and decay later."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    clip_grad: float
    initial_loss_scale: float
    loss_scale_window: int


@dataclass(frozen=True, kw_only=True)
class UpdateResult:
    """What one optimizer step did."""

    grad_norm: float
    """L2 norm of the whole model's gradient before clipping; NaN when the step was skipped."""
    skipped: bool
    """fp16 only: the scaled gradients overflowed and no weight changed."""
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
        adam: AdamSettings,
        kernels: Kernels = AUTO,
    ) -> None:
        config = OptimizerConfig(
            optimizer="adam",
            lr=adam.lr,
            min_lr=0.0,
            weight_decay=adam.weight_decay,
            adam_beta1=adam.betas[0],
            adam_beta2=adam.betas[1],
            adam_eps=adam.eps,
            clip_grad=adam.clip_grad,
            bf16=settings.bf16,
            fp16=settings.fp16,
            params_dtype=settings.params_dtype,
            use_distributed_optimizer=layout.config.distributed_optimizer,
            overlap_param_gather=layout.config.overlap_param_gather,
            initial_loss_scale=adam.initial_loss_scale,
            loss_scale_window=adam.loss_scale_window,
        )
        chained = get_megatron_optimizer(config, list(chunks), use_gloo_process_groups=False)
        assert len(chained.chained_optimizers) == 1, "dense models have one optimizer"
        self._megatron = chained.chained_optimizers[0]
        assert isinstance(self.inner, FusedAdam), f"built {type(self.inner)}, not FusedAdam"
        self._clip_grad = adam.clip_grad
        self._kernels = kernels
        self._scaler = getattr(self._megatron, "grad_scaler", None)
        self.inner.adamw = kernels.adamw_
        self.inner.copies = dict(self._twins())
        # The update has written them already.
        self._megatron._copy_main_params_to_model_params = _nothing
        settings.grad_scale_func = self._megatron.scale_loss

    @property
    def inner(self) -> FusedAdam:
        """The Adam that holds the moments."""
        return self._megatron.optimizer

    def zero_grad(self) -> None:
        """Drops gradients of the previous step."""
        self._megatron.zero_grad(set_to_none=True)

    def set_rates(self, *, learning_rate: float, weight_decay: float) -> None:
        """Sets rate and decay of the coming step; norms (1-D) decay by their group's factor 0."""
        for group in self.inner.param_groups:
            group["lr"] = learning_rate * group["lr_mult"]
            group["weight_decay"] = weight_decay * group["wd_mult"]

    def update(self) -> UpdateResult:
        """Unscales, clips by the global norm and steps. Collective over all ranks.

        Raises:
            NumericError: The gradient norm is not finite (on every rank alike, nothing was
            changed).
        """
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

        Infinite or NaN where any gradient is. Waits for the device once.
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
        dist.all_reduce(squares, group=self._megatron.get_grad_stats_parallel_group())
        if self._scaler is None:
            return math.sqrt(squares.item()), 1.0
        total, loss_scale = torch.stack([squares, self._scaler.scale.squeeze()]).tolist()
        return math.sqrt(total), loss_scale

    def _twins(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(fp32 main parameter, the half-precision weights it stands for)."""
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

    def reset_main_parameters(self) -> None:
        """Copies weights that were loaded alone into the fp32 main parameters."""
        self._megatron.reload_model_params()

    def slices(self, pieces: Mapping[torch.nn.Parameter, Sequence[Piece]]) -> Iterator[TensorSlice]:
        """Every box of optimizer state that this rank holds, as views of live memory.

        Keys are `exp_avg.<key>`, `exp_avg_sq.<key>` and, where parameters are not fp32,
        `master.<key>`.

        Args:
            pieces: What each parameter of the model holds.
        """
        self.inner.initialize_state()
        for parameter, held in pieces.items():
            if not parameter.requires_grad:
                continue
            main, start = self._main_parameter(parameter)
            if main is None:
                continue
            tensors = {f"{name}.": moment for name, moment in self.inner.state[main].items()}
            if parameter.dtype != torch.float32:
                tensors["master."] = main
            for prefix, tensor in tensors.items():
                if start is None:
                    yield from row_slices(held, tensor, prefix=prefix)
                else:
                    yield from flat_slices(
                        held, parameter.shape, tensor.view(-1), start=start, prefix=prefix
                    )

    def _main_parameter(
        self, parameter: torch.nn.Parameter
    ) -> tuple[torch.Tensor | None, int | None]:
        """The tensor Adam updates for a parameter, and where it starts in it when it is a shard."""
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
        """Step count and loss scale: what a checkpoint keeps beside the tensors."""
        state: dict[str, float | int] = {
            "step": max(group["step"] for group in self.inner.param_groups)
        }
        if self._scaler is not None:
            state |= {name: _plain(value) for name, value in self._scaler.state_dict().items()}
        return state

    def load_state(self, state: Mapping[str, float | int]) -> None:
        """Takes back what `state` gave."""
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
    """What is left to do after an update that wrote the weights."""
