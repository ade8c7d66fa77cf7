"""Complete training steps: ours, ours without each fused op, and transformers.Trainer.

    python benchmarks/train_step.py                     # tiny Llama, one CPU thread
    python benchmarks/train_step.py --trainer-compile   # the trainer with torch.compile
    python benchmarks/train_step.py --device cuda       # 8 layers of 13B geometry, ours alone

On CPU, transformers.Trainer runs with fused AdamW and sdpa; it needs `pip install '.[bench]'`. All
sides have equal weights and tokens, and take turns step by step; the loss of the first step must
agree before a figure is printed. Ratios are medians over rounds, with their 20th and 80th
percentiles. Loading, clipping and the update are part of a step, logging is
not. On CUDA the variants follow one another, since two do not fit the device. Results go to
bench_out/train_step-DEVICE.json.
"""

import argparse
import gc
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timing
import torch
from step_variants import Ablation, OurVariant, Samples, TrainerVariant, Workload, one_rank

from megatron_chimed import engine
from megatron_chimed.command_line import CommandParser
from megatron_chimed.errors import ConfigError, NumericError, run_command
from megatron_chimed.files import write_json
from megatron_chimed.kernels import native
from megatron_chimed.kernels.rms_norm import RMS_NORM
from megatron_chimed.model import ModelConfig
from megatron_chimed.observe.flops import FLOPS_FORMULA, model_flops_per_token

TINY = Workload(
    model=ModelConfig(
        vocab_size=8192,
        hidden_size=256,
        num_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        ffn_hidden_size=704,
        max_position_embeddings=512,
    ),
    seq_length=512,
    batch_size=2,
    precision="fp32",
)
LARGE = Workload(
    model=ModelConfig(vocab_size=39424, num_layers=8, max_position_embeddings=4096),
    seq_length=4096,
    batch_size=1,
    precision="bf16",
)
OURS, TRAINER = "ours", "transformers.Trainer"
VARIANTS = {
    OURS: Ablation(),
    "ours, reference ops": Ablation(backend="reference"),
    "ours, RMSNorm off": Ablation(off=("rms_norm", "add_rms_norm")),
    "ours, SwiGLU off": Ablation(off=("swiglu",)),
    "ours, RoPE off": Ablation(off=("rope",)),
    "ours, attention off": Ablation(off=("causal_attention",)),
    "ours, cross-entropy off": Ablation(off=("vocab_parallel_cross_entropy",)),
    "ours, AdamW and norm off": Ablation(off=("adamw_", "l2_norm")),
    "ours, linear layers off": Ablation(off=("weight_gradients",)),
}
LOSS_TOLERANCE = {"fp32": 1e-5, "bf16": 2e-3}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    options = _parser().parse_args(argv)
    timing.keep_freed_memory()
    torch.set_num_threads(1)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device is cuda, but torch sees none here. Leave it out to use the CPU."
        )
    if reason := native.why_not_fused(RMS_NORM, options.device):
        raise ConfigError(f"There is nothing to measure: {reason}.")
    workload = LARGE if options.device == "cuda" else TINY
    facts = timing.machine(options.device) | {"command": " ".join(sys.argv)}
    facts |= {"flops": FLOPS_FORMULA}
    measure = _measure_cuda if options.device == "cuda" else _measure_cpu
    with one_rank(workload) as ranks:
        results = measure(workload, ranks, options, facts)
    output = options.output / f"train_step-{options.device}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, {"machine": facts, "results": results})
    print(f"\nwritten to {output}")
    return 0


def _measure_cpu(
    workload: Workload, ranks: engine.Ranks, options: argparse.Namespace, facts: dict[str, Any]
) -> list[dict[str, Any]]:
    samples = Samples(workload, seed=options.seed)
    sides: dict[str, OurVariant | TrainerVariant] = {
        name: OurVariant(workload, samples, ranks=ranks, kernels=kernels)
        for name, kernels in VARIANTS.items()
    }
    weights = sides[OURS].weights()
    facts["transformers"], absent = _trainer_version()
    if not absent:
        compiled = options.trainer_compile
        sides[TRAINER] = TrainerVariant(workload, samples, weights, compiled=compiled)
    level = native.CPU_LEVELS[native.set_cpu_level(-1)]
    facts |= {"level": level, "matmul_gflops": round(_matmul_flops("cpu") / 1e9, 1)}
    _print_facts(facts)
    print("one thread, process time; malloc keeps freed memory (M_MMAP_MAX 0) for all sides")
    try:
        for side in sides.values():
            side.step(0)
        _check_first_losses(sides, workload)
        steps = {name: side.step for name, side in sides.items()}
        times = timing.interleave(steps, device="cpu", rounds=options.rounds)
    finally:
        for side in sides.values():
            side.close()
    baseline = TRAINER if TRAINER in times else OURS
    results = []
    print(f"\n{'variant':33}{'tokens / CPU-second':>26}  ratio to {baseline}")
    for name, spread in times.items():
        results.append(_row(name, spread, workload, times[baseline]))
    if absent:
        print(f"{TRAINER}: not measured, {absent}")
        results.append({"variant": TRAINER, "not_measured": absent})
    return results


def _measure_cuda(
    workload: Workload, ranks: engine.Ranks, options: argparse.Namespace, facts: dict[str, Any]
) -> list[dict[str, Any]]:
    samples = Samples(workload, seed=options.seed, count=64)
    peak = _matmul_flops("cuda")
    facts["matmul_tflops"] = round(peak / 1e12, 1)
    _print_facts(facts)
    flops = _flops_per_token(workload)
    results, measured, baseline = [], {}, None
    print(f"\n{'variant':33}{'tokens / second':>26}  ratio to {OURS}, of the matmul rate, memory")
    for name, kernels in VARIANTS.items():
        torch.cuda.reset_peak_memory_stats()
        side = OurVariant(workload, samples, ranks=ranks, kernels=kernels)
        spread = timing.interleave({name: side.step}, device="cuda", rounds=options.rounds)[name]
        side.close()
        measured[name] = side
        _check_first_losses(measured, workload)
        baseline = baseline or spread
        row = _row(name, spread, workload, baseline)
        share = row["tokens_per_second"] * flops / peak
        memory = torch.cuda.max_memory_allocated() / 2**30
        print(f"{'':33}{share:>26.1%} of the matmul rate, peak {memory:.1f} GiB")
        results.append(row | {"fraction_of_matmul_rate": share, "peak_memory_gib": memory})
        side.job = side.batches = None  # the device has no room for two
        gc.collect()
        torch.cuda.empty_cache()
    return results


def _row(
    name: str, spread: timing.Spread, workload: Workload, baseline: timing.Spread
) -> dict[str, Any]:
    rate, slow, fast = (
        workload.tokens_per_step / ms * 1e3 for ms in (spread.median, spread.high, spread.low)
    )
    ratio = timing.paired_ratio(spread, baseline)
    figures = f"{rate:.0f} ({slow:.0f}-{fast:.0f})"
    print(
        f"{name:33}{figures:>26}  {ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f})", flush=True
    )
    return {
        "variant": name,
        "tokens_per_second": rate,
        "milliseconds": timing.as_json(spread),
        "ratio": timing.as_json(ratio),
    }


def _check_first_losses(sides: dict[str, Any], workload: Workload) -> None:
    expected = float(sides[OURS].losses[0])
    for name, side in sides.items():
        loss = float(side.losses[0])
        if not abs(loss - expected) <= LOSS_TOLERANCE[workload.precision] * expected:
            raise NumericError(
                f"the first loss of {name} is {loss:.6f}, that of {OURS} {expected:.6f}: they do "
                "not train the same thing, and nothing is timed."
            )


def _trainer_version() -> tuple[str, str]:
    """(version of transformers, why its trainer cannot run or '')."""
    if importlib.util.find_spec("accelerate") is None:
        return "not used", "it needs accelerate: pip install -c constraints.txt -e '.[bench]'"
    import transformers

    return transformers.__version__, ""


def _flops_per_token(workload: Workload) -> int:
    model = workload.model
    return model_flops_per_token(
        num_parameters=model.num_parameters,
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        sequence_length=workload.seq_length,
    )


def _matmul_flops(device: str) -> float:
    """FLOP/s of a large matrix product in the type of the workload, measured here and now."""
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    spread = timing.interleave({"matmul": lambda _: a @ b}, device=device, rounds=9)["matmul"]
    return 2 * size**3 / (spread.median * 1e-3)


def _print_facts(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        print(f"{name}: {value}")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="train_step.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(cpu)")
    parser.add_argument(
        "--rounds", type=timing.at_least_one, default=15, help="measured rounds (15)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the tokens (0)")
    parser.add_argument(
        "--trainer-compile", action="store_true", help="the trainer uses torch.compile"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("bench_out"), help="folder of the result (bench_out)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
