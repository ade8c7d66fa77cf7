"""What a run says at its start: its device, its libraries, and what computes each op."""

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_chimed.engine import DTYPES
from megatron_chimed.engine.versions import environment, op_paths
from megatron_chimed.kernels import OpPath
from megatron_chimed.kernels.native import BUILD_HINT, LIBRARY
from megatron_chimed.model import describe_attention
from megatron_chimed.observe.logger import RunLogger
from megatron_chimed.training.job import Job
from megatron_chimed.training.nodes import gather_nodes, node_differences

ENVIRONMENT = "environment"
OP = "op."
NODE = "node."
_LIBRARIES = ("torch", "cuda", "driver", "nccl", "megatron_core", "megatron_chimed")


def report_start(job: Job, logger: RunLogger) -> None:
    """Reports the environment: to the trackers, metrics.jsonl and the log; every rank calls it.

    Devices, versions and ops are those of the rank that writes; `node.N` describes all nodes.
    """
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
    nodes = gather_nodes(record, job.ranks.agreement)
    record |= {f"{NODE}{n}": f"{node.host}, {node.describe()}" for n, node in enumerate(nodes)}
    logger.track(config.resolved | {ENVIRONMENT: record})
    logger.event(ENVIRONMENT, job.progress.step, **record)
    for line in [*start_lines(record, paths), node_differences(nodes)]:
        if line:
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
    if record["device"] == "cuda":
        lines += _unusable_library(paths)
    return lines


def _unusable_library(paths: Sequence[OpPath]) -> list[str]:
    """A warning where the library of kernels is missing, does not load or holds none for GPUs."""
    reasons = {path.reason: path for path in paths if path.reason.startswith(LIBRARY.name)}
    if not reasons:
        return []
    ops_by_path: dict[str, list[str]] = {}
    for path in paths:
        if path.reason in reasons:
            ops_by_path.setdefault(path.path, []).append(path.op)
    instead = " and ".join(
        f"{'plain torch' if path == 'reference' else path} computes {', '.join(ops)}"
        for path, ops in ops_by_path.items()
    )
    unbuilt = any(BUILD_HINT in reason for reason in reasons)
    what = "were not built for CUDA" if unbuilt else f"cannot be used ({next(iter(reasons))})"
    how = f"To build them, {BUILD_HINT}" if unbuilt else "Build them again: `make -B install`"
    return [
        f"warning: the kernels {what}, so {instead}: slower, and plain torch needs more memory. "
        f"{how}; see docs/gpu.md."
    ]
