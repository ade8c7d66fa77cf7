"""What a run says at its start: its device, its libraries, and what computes each op."""

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_chimed.engine import DTYPES
from megatron_chimed.engine.versions import environment, op_paths
from megatron_chimed.kernels import OpPath
from megatron_chimed.kernels.native import BUILD_HINT
from megatron_chimed.model import describe_attention
from megatron_chimed.observe.logger import RunLogger
from megatron_chimed.training.job import Job

ENVIRONMENT = "environment"
OP = "op."
_LIBRARIES = ("torch", "cuda", "driver", "nccl", "megatron_core", "megatron_chimed")


def report_start(job: Job, logger: RunLogger) -> None:
    """Reports the environment of this rank: to the trackers, metrics.jsonl and the log."""
    config, device = job.config, job.ranks.device
    paths = op_paths(device, config.kernels.backend)
    attention = describe_attention(
        config.model,
        dtype=DTYPES[config.training.precision],
        device=device,
        packed="segment_ids" in job.datasets.train[job.progress.consumed_samples],
    )
    record = environment(device) | {f"{OP}{path.op}": path.path for path in paths}
    record["attention"] = attention
    logger.track(config.resolved | {ENVIRONMENT: record})
    logger.event(ENVIRONMENT, job.progress.step, **record)
    for line in start_lines(record, paths):
        logger.message(line)


def start_lines(record: Mapping[str, Any], paths: Sequence[OpPath]) -> list[str]:
    """Lines of the log, with a warning where plain torch runs on a GPU."""
    libraries = ", ".join(
        f"{name.replace('_core', '-core')} {record[name]}" for name in _LIBRARIES if name in record
    )
    ops_by_path: dict[str, list[str]] = {}
    for path in paths:
        ops_by_path.setdefault(path.path, []).append(path.op)
    listed = "; ".join(f"{path}: {', '.join(ops)}" for path, ops in ops_by_path.items())
    lines = [
        f"device: {record['device_name']}, {record['device_memory_gib']:g} GiB, collectives by "
        f"{record['collectives']}; {libraries}",
        f"ops: {listed}; attention: {record['attention']}",
    ]
    unbuilt = {path.path for path in paths if BUILD_HINT in path.reason}
    if record["device"] == "cuda" and unbuilt:
        instead = " and ".join(
            f"{'plain torch' if path == 'reference' else path} computes {', '.join(ops)}"
            for path, ops in ops_by_path.items()
            if path in unbuilt
        )
        lines.append(
            f"warning: the kernels were not built for CUDA, so {instead}: slower, and plain torch "
            f"needs more memory. To build them, {BUILD_HINT}; see docs/gpu.md."
        )
    return lines
