"""Our fused kernels compared with torch, megatron-core and Liger, forward and backward together.

    python benchmarks/kernels.py                     # CPU on one thread; CUDA if available
    python benchmarks/kernels.py --ops rope,swiglu   # selected ops
    python benchmarks/kernels.py --compile           # also torch.compile of the eager formula
    python benchmarks/kernels.py --cpu-level AVX2    # limit our kernels to an older instruction set

Every op is first compared with float64; a wrong one is not timed. All sides run under autograd in
the same way, in turns, on the same three sets of random inputs. Times are medians with their 20th
and 80th percentiles. Results go to bench_out/kernels-DEVICE.json.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import kernel_baselines
import timing
import torch
from kernel_accuracy import NUM_SETS, TOLERANCES, forward_backward, relative_error
from kernel_cases import Case, all_cases

from megatron_chimed.command_line import CommandParser
from megatron_chimed.errors import ConfigError, NumericError, run_command
from megatron_chimed.files import write_json
from megatron_chimed.kernels import native
from megatron_chimed.kernels.rms_norm import RMS_NORM

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    options = _parser().parse_args(argv)
    timing.keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    if reason := native.load_library():
        raise ConfigError(f"There is nothing to measure: {reason}.")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    try:
        for device in [options.device] if options.device else devices:
            if reason := native.why_not_fused(RMS_NORM, device):
                raise ConfigError(f"No kernels for {device}: {reason}.")
            _run_device(device, options)
    finally:
        kernel_baselines.close()
    return 0


def _run_device(device: str, options: argparse.Namespace) -> None:
    level = _choose_level(options.cpu_level) if device == "cpu" else "CUDA"
    facts = timing.machine(device) | {"level": level, "command": " ".join(sys.argv)}
    bandwidth = timing.copy_bandwidth(device, gigabytes=0.2 if device == "cpu" else 4)
    facts["copy_gb_per_s"] = round(bandwidth, 1)
    for name, value in facts.items():
        print(f"{name}: {value}")
    if device == "cpu":
        print("one thread, process time; malloc keeps freed memory (M_MMAP_MAX 0) for all sides")
    print(f"\n{'op':22}{'size':27}{'dtype':6}{'ours ms':>20}{'of copy':>9}  baseline / ours")
    results = []
    for name in options.dtypes.split(","):
        for case in all_cases(device, DTYPES[name]):
            if not options.ops or case.op in options.ops.split(","):
                results.append(_run_case(case, name, device, bandwidth, options))
    output = options.output / f"kernels-{device}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, {"machine": facts, "results": results})
    print(f"\nwritten to {output}\n")


def _run_case(
    case: Case, dtype: str, device: str, bandwidth: float, options: argparse.Namespace
) -> dict[str, Any]:
    sets = [case.make() for _ in range(NUM_SETS)]
    error = _check(case, sets[0])
    functions = dict(case.variants)
    if options.compile and "eager" in functions:
        functions["torch.compile"] = torch.compile(functions["eager"], dynamic=False)
    call = forward_backward if case.exact else _plain
    variants = {
        name: functools.partial(call, function, sets) for name, function in functions.items()
    }
    times = timing.interleave(variants, device=device, rounds=options.rounds)
    ours = times["ours"]
    share = case.traffic / (ours.median * 1e-3) / 1e9 / bandwidth
    ratios = {name: spread.median / ours.median for name, spread in times.items()}
    spread = f"{ours.median:.2f} ({ours.low:.2f}-{ours.high:.2f})"
    others = ", ".join(
        f"{name} {ratios[name]:.2f}x ({s.median:.2f}, {s.low:.2f}-{s.high:.2f})"
        for name, s in times.items()
        if name != "ours"
    )
    print(f"{case.op:22}{case.size:27}{dtype:6}{spread:>20}{share:>8.0%}  {others}", flush=True)
    return {
        "op": case.op,
        "size": case.size,
        "dtype": dtype,
        "relative_error": error,
        "milliseconds": {name: timing.as_json(s) for name, s in times.items()},
        "ratio_to_ours": ratios,
        "fraction_of_copy_bandwidth": share,
    }


def _plain(function: Callable, sets: list, number: int) -> None:
    function(*sets[number % NUM_SETS])


def _check(case: Case, inputs: tuple) -> float | None:
    """The largest relative error of ours against float64, outputs and gradients alike."""
    if case.exact is None:
        return None  # adamw and l2_norm are compared in the tests
    error = relative_error(case, inputs)
    if not error <= TOLERANCES[case.dtype]:
        raise NumericError(
            f"{case.op} {case.size} {case.dtype} is off by {error:.1e} relative to float64: it is "
            "wrong, and a wrong kernel is not timed."
        )
    return error


def _choose_level(name: str) -> str:
    if name:
        if name not in native.CPU_LEVELS:
            raise ConfigError(f"--cpu-level is {name}, but it is one of {native.CPU_LEVELS}.")
        wanted = native.CPU_LEVELS.index(name)
        if native.set_cpu_level(wanted) != wanted:
            raise ConfigError(f"--cpu-level is {name}, but this processor lacks it.")
    return native.CPU_LEVELS[native.set_cpu_level(-1)]


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="kernels.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="only this one")
    parser.add_argument("--dtypes", default="fp32,bf16", help="comma-separated (fp32,bf16)")
    parser.add_argument("--ops", default="", help="comma-separated names (all)")
    parser.add_argument(
        "--rounds", type=timing.at_least_one, default=15, help="measured rounds (15)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (0)")
    parser.add_argument("--compile", action="store_true", help="torch.compile as a baseline too")
    parser.add_argument("--cpu-level", default="", help=f"one of {', '.join(native.CPU_LEVELS)}")
    parser.add_argument(
        "--output", type=Path, default=Path("bench_out"), help="folder of the result (bench_out)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
