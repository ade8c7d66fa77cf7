"""One step of the optimizer against torch: norm, unscaling, clipping, update and weights."""

import dataclasses
import math

import pytest
import torch

from megatron_chimed import engine
from megatron_chimed.config.kernels import KernelConfig
from megatron_chimed.config.optim import OptimConfig
from megatron_chimed.errors import NumericError
from tests.unit.engine.world import one_rank, settings_of, whole_model

LOSS_SCALE = 64.0
OPTIM = OptimConfig(lr=1e-2, initial_loss_scale=LOSS_SCALE)
PRECISIONS = ("fp32", "bf16", "fp16")


class Built:
    """A whole model with its optimizer; `gradients` are those of the unscaled loss."""

    def __init__(self, ranks, precision, backend="auto", offload=False):
        self.model = whole_model(ranks, precision=precision)
        settings = settings_of(ranks, precision=precision)
        kernels = KernelConfig(backend=backend).ops()
        _, self.optimizer = engine.make_trainable(
            [self.model],
            settings,
            ranks,
            optim=dataclasses.replace(OPTIM, offload=offload),
            specs={},
            kernels=kernels,
        )
        self.scale = LOSS_SCALE if precision == "fp16" else 1.0
        self.generator = torch.Generator().manual_seed(7)

    def draw_gradients(self, std=1.0):
        found = {}
        for name, parameter in self.model.named_parameters():
            found[name] = torch.randn(parameter.shape, generator=self.generator) * std
            parameter.main_grad.copy_(found[name] * self.scale)
        return found


def torch_step(reference, gradients):
    """Norm of the gradients; `reference` is (AdamW, its fp32 parameters by name)."""
    adam, parameters = reference
    for name, parameter in parameters.items():
        parameter.grad = gradients[name].clone()
    norm = torch.nn.utils.clip_grad_norm_(parameters.values(), OPTIM.clip_grad)
    adam.step()
    return float(norm)


def torch_reference(model):
    copies = {n: p.detach().float().clone().requires_grad_() for n, p in model.named_parameters()}
    groups = [
        {"params": [p for p in copies.values() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in copies.values() if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=OPTIM.lr, betas=(0.9, 0.95), eps=1e-8), copies


@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_three_steps_are_those_of_torch(precision, distributed, backend):
    """Adam forgets a factor common to all gradients, so only some of the steps are clipped."""
    with one_rank(distributed_optimizer=distributed) as ranks:
        built = Built(ranks, precision, backend)
        reference = torch_reference(built.model)
        for std, is_clipped in ((1.0, True), (1e-3, False), (1.0, True)):
            gradients = built.draw_gradients(std)
            result = built.optimizer.update(learning_rate=OPTIM.lr)
            assert result.grad_norm == pytest.approx(torch_step(reference, gradients), rel=1e-6)
            assert (result.grad_norm > OPTIM.clip_grad) == is_clipped
            assert (result.skipped, result.loss_scale) == (False, built.scale)
            built.optimizer.zero_grad()
        for name, parameter in built.model.named_parameters():
            expected = reference[1][name]
            # Weights in half precision are their fp32 masters, rounded once.
            rounding = 0.0 if precision == "fp32" else torch.finfo(parameter.dtype).eps / 2
            error = (parameter.float() - expected).norm() / expected.norm()
            assert error < 2e-6 + rounding, name


@pytest.mark.parametrize("distributed", [False, True])
def test_unscaling_and_clipping_are_one_factor_in_fp16(distributed):
    """Seen in the first moments, which have it once: Adam's update hides what all gradients share,
    so a loss scale that was forgotten would not show in the weights."""
    with one_rank(distributed_optimizer=distributed) as ranks:
        for std, is_clipped in ((1.0, True), (1e-3, False)):
            built = Built(ranks, "fp16")
            gradients = built.draw_gradients(std)
            result = built.optimizer.update(learning_rate=OPTIM.lr)
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
            assert result.grad_norm == pytest.approx(norm, rel=1e-6)
            factor = OPTIM.clip_grad / norm if is_clipped else 1.0
            assert built.optimizer.inner.grad_scale == pytest.approx(factor / LOSS_SCALE, rel=1e-5)
            moments = sum(
                float(state["exp_avg"].double().square().sum())
                for state in built.optimizer.inner.state.values()
            )
            expected = (1 - OPTIM.adam_beta1) * norm * factor
            assert math.sqrt(moments) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("distributed", [False, True])
def test_the_weights_are_the_rounded_masters(distributed):
    with one_rank(distributed_optimizer=distributed) as ranks:
        built = Built(ranks, "bf16")
        built.draw_gradients()
        built.optimizer.update(learning_rate=OPTIM.lr)
        masters = [p for group in built.optimizer.inner.param_groups for p in group["params"]]
        weights = built.optimizer.inner.copies
        assert len(masters) == len(list(built.model.parameters())) == len(weights)
        for master in masters:
            assert torch.equal(weights[master], master.to(torch.bfloat16))


@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("wrong", [math.inf, math.nan])
def test_an_overflow_changes_nothing_and_halves_the_scale(wrong, distributed):
    with one_rank(distributed_optimizer=distributed) as ranks:
        built = Built(ranks, "fp16")
        before = [p.clone() for p in built.model.parameters()]
        built.draw_gradients()
        next(iter(built.model.parameters())).main_grad[-1, -1] = wrong
        for _ in range(2):  # megatron-core's scaler waits for a second overflow
            result = built.optimizer.update(learning_rate=OPTIM.lr)
            assert result.skipped and math.isnan(result.grad_norm)
        assert all(map(torch.equal, built.model.parameters(), before))
        assert built.optimizer.state()["scale"] == LOSS_SCALE / 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_no_number_is_an_error(precision):
    with one_rank() as ranks:
        built = Built(ranks, precision)
        before = [p.clone() for p in built.model.parameters()]
        built.draw_gradients()
        next(iter(built.model.parameters())).main_grad[0, 0] = math.nan
        with pytest.raises(NumericError, match="gradient norm is nan: no weight was changed"):
            built.optimizer.update(learning_rate=OPTIM.lr)
        assert all(map(torch.equal, built.model.parameters(), before))


@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_offloaded_optimizer_makes_the_same_bits(precision, distributed):
    with one_rank(distributed_optimizer=distributed) as ranks:
        plain, offloaded = (Built(ranks, precision, offload=offload) for offload in (False, True))
        for std in (1.0, 1e-3, 1.0):
            for built in (plain, offloaded):
                built.draw_gradients(std)
                built.optimizer.update(learning_rate=OPTIM.lr)
                built.optimizer.zero_grad()
        for parameter, other in zip(
            plain.model.parameters(), offloaded.model.parameters(), strict=True
        ):
            assert torch.equal(parameter, other)
        for shard, other in zip(held(plain), held(offloaded), strict=True):
            assert shard.key == other.key and torch.equal(shard.tensor, other.tensor), shard.key


def held(built):
    return list(built.optimizer.shards(built.model.shard_specs()))


@pytest.mark.parametrize("distributed", [False, True])
def test_offloaded_masters_leave_no_memory_on_the_device(distributed):
    with one_rank(distributed_optimizer=distributed) as ranks:
        built = Built(ranks, "bf16", offload=True)
        masters = [p for group in built.optimizer.inner.param_groups for p in group["params"]]
        assert sum(master.untyped_storage().nbytes() for master in masters) == 0
        host = built.optimizer.inner.host
        with torch.no_grad():
            for parameter in built.model.parameters():
                parameter.fill_(0.5)
        built.optimizer.reset_master_weights()
        assert all((host.master(master) == 0.5).all() for master in masters)
