"""Training steps of a few layers of a real geometry, with weights drawn on the device."""

import contextlib
import gc
import math

import torch
from step_variants import Ablation, OurVariant, Samples, Workload, one_rank
from torch.nn.attention import SDPBackend, sdpa_kernel

from device_items import rates
from device_items.context import Context
from device_items.gpu import median
from device_items.record import Goal
from megatron_chimed.engine import Ranks
from megatron_chimed.observe.flops import FLOPS_FORMULA, model_flops_per_token
from megatron_chimed.training.job import Job

WARMUP_STEPS = 2
MICRO_BATCHES = 2
# Matrix products are all but about 12 % of a step's time if the kernels reach their goals; large
# clusters report 47 to 48 % of the datasheet's peak, communication included.
OF_MATMUL = 0.60
LOSS_TOLERANCE = 2e-3  # of the first step, in bf16


def run(context: Context) -> None:
    """13B geometry: ours, ours with plain torch ops, and each attention back end."""
    plan = context.plan
    variants = {"ours": (Ablation(), None), "reference ops": (Ablation(backend="reference"), None)}
    variants |= {f"ours, {name}": (Ablation(), name) for name in plan.attention}
    measure_steps(context, "13B geometry", plan.step_model, variants)


def run_llama(context: Context) -> None:
    """Llama 3 8B geometry: grouped-query attention and a large vocabulary."""
    variants = {"ours": (Ablation(), None)}
    measure_steps(context, "8B geometry", context.plan.llama_model, variants)


def measure_steps(context: Context, name: str, model, variants: dict) -> None:
    """Tokens per second, share of the matmul rate, peak memory; the first losses must agree."""
    plan, add = context.plan, context.record.add
    workload = Workload(
        model=model,
        seq_length=plan.seq_length,
        batch_size=plan.micro_batch_size,
        micro_batches=MICRO_BATCHES,
        precision="bf16",
    )
    samples = Samples(workload, seed=0, count=64)
    matmul = rates.measure(context).matmul_flops
    flops = flops_per_token(workload)
    goal = Goal(at_least=OF_MATMUL, needs_gpu=True)
    first_losses: dict[str, float] = {}
    with one_rank(workload) as ranks:
        for variant, (kernels, attention) in variants.items():
            label = f"{name}, {model.num_layers} layers, {variant}"
            context.gpu.reset_peak()
            try:
                losses, milliseconds = _steps(context, workload, samples, ranks, kernels, attention)
            except torch.OutOfMemoryError as error:
                context.record.unavailable(label, str(error))
                continue
            rate = workload.tokens_per_step / (milliseconds * 1e-3)
            share = rate * flops / matmul
            details = {"goal": goal if variant == "ours" else None}
            details |= {"flops": FLOPS_FORMULA, "matmul_tflops": matmul / 1e12}
            add(f"{label}: tokens", rate, "per second", milliseconds=milliseconds)
            add(f"{label}: model FLOPs", share, "of the matmul rate", **details)
            add(f"{label}: peak memory", context.gpu.peak_gib(), "GiB", batch=plan.micro_batch_size)
            first_losses[variant] = losses[0]
            gc.collect()
    _compare_losses(context, name, first_losses)


# long: arguments of one measurement
def _steps(  # noqa: PLR0913
    context: Context,
    workload: Workload,
    samples: Samples,
    ranks: Ranks,
    kernels: Ablation,
    attention: str | None,
) -> tuple[list[float], float]:
    """(losses, median milliseconds of a step); frees the job, since the device has no room for two.

    An attention back end that cannot run is an error of torch, not a slower one.
    """
    chosen = (
        sdpa_kernel([getattr(SDPBackend, attention)]) if attention else contextlib.nullcontext()
    )
    side = OurVariant(workload, samples, ranks=ranks, kernels=kernels, draw=draw_on_device)
    try:
        with chosen:
            for _ in range(WARMUP_STEPS):
                side.step(0)
            times = context.gpu.milliseconds([lambda: side.step(0)], context.plan.step_rounds)
        return [float(loss) for loss in side.losses], median(times)
    finally:
        side.close()


def draw_on_device(job: Job) -> None:
    """Normal weights from the device's generator: seconds less than the product's own draw.

    They are the same for every variant on one device, not for every layout.
    """
    generator = torch.Generator(job.ranks.device).manual_seed(1234)
    with torch.no_grad():
        for chunk in job.chunks:
            fill_weights(chunk, generator)
    job.optimizer.reset_master_weights()


@torch.no_grad()
def fill_weights(chunk: torch.nn.Module, generator: torch.Generator) -> None:
    """Norms with one, matrices with small normal values."""
    for parameter in chunk.parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, 0.02, generator=generator)


def flops_per_token(workload: Workload) -> int:
    """Model FLOPs of forward and backward."""
    model = workload.model
    return model_flops_per_token(
        num_parameters=model.num_parameters,
        vocab_size=model.known_vocab_size,
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        sequence_length=workload.seq_length,
    )


def _compare_losses(context: Context, name: str, losses: dict[str, float]) -> None:
    ours = losses.get("ours", math.nan)
    for variant, loss in losses.items():
        if variant != "ours":
            goal = Goal(at_most=LOSS_TOLERANCE)
            what = f"{name}, {variant}: first loss against ours"
            context.record.add(what, abs(loss - ours) / abs(ours), "relative", goal=goal, loss=loss)
