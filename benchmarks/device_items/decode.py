"""Milliseconds of one decoding step of the whole 13B geometry, and the host's share of them."""

import time

import torch
from step_variants import Workload, one_rank

from device_items import rates
from device_items.context import Context
from device_items.steps import fill_weights
from megatron_chimed import engine
from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.generation import Session, make_requests
from megatron_chimed.generation.decoder import Decoder
from megatron_chimed.model import build_chunks

PROFILED_STEPS = 4
# The first steps prefill the prompts and warm up.
WARMUP_STEPS = 4


def run(context: Context) -> None:
    """One model, one batch after the other."""
    plan = context.plan
    model, add = plan.decode_model, context.record.add
    workload = Workload(model=model, seq_length=plan.seq_length, batch_size=1, precision="bf16")
    copy = rates.measure(context).copy_bytes_per_second
    with one_rank(workload) as ranks:
        settings = engine.engine_settings(
            ranks.layout, hidden_size=model.hidden_size, precision="bf16"
        )
        chunks = [chunk.eval() for chunk in build_chunks(model, settings=settings, ranks=ranks)]
        generator = torch.Generator(ranks.device).manual_seed(1234)
        for chunk in chunks:
            fill_weights(chunk, generator)
        session = Session(chunks=chunks, settings=settings, ranks=ranks)
        # The embedding is looked up; all other weights are read once in a step.
        read = model.num_parameters - model.known_vocab_size * model.hidden_size
        floor = 2 * read / copy * 1e3
        add("weights read once", floor, "ms", layers=model.num_layers)
        for batch in plan.decode_batches:
            _measure(context, session, batch, floor)


def _measure(context: Context, session: Session, batch: int, floor: float) -> None:
    plan = context.plan
    generator = torch.Generator().manual_seed(batch)
    shape = (batch, plan.decode_prompt)
    prompts = torch.randint(session.vocab_size, shape, generator=generator).tolist()
    steps = WARMUP_STEPS + plan.decode_steps + PROFILED_STEPS
    sampling = SamplingConfig(max_new_tokens=steps + 1, temperature=0.0)
    context.gpu.reset_peak()
    decoder = Decoder(session, make_requests(prompts), sampling, max_batch=batch)
    for _ in range(WARMUP_STEPS):
        decoder.step()
    context.gpu.synchronize()
    begin = time.perf_counter()
    for _ in range(plan.decode_steps):
        decoder.step()
    context.gpu.synchronize()
    step = (time.perf_counter() - begin) * 1e3 / plan.decode_steps

    def profiled() -> None:
        for _ in range(PROFILED_STEPS):
            decoder.step()

    busy = context.gpu.busy_milliseconds(profiled) / PROFILED_STEPS
    context.record.add(
        f"batch {batch}: a step",
        step,
        "ms",
        tokens_per_second=batch / (step * 1e-3),
        device_milliseconds=busy,
        times_reading_the_weights=step / floor,
        peak_gib=context.gpu.peak_gib(),
    )
    context.record.add(f"batch {batch}: host's share", max(0.0, 1 - busy / step), "of a step")
