"""The megatron-core adapter: layouts, process groups, schedules, optimizers, random streams.

Everything that touches megatron-core's internals lives here. On CUDA and NCCL it changes nothing;
without CUDA the same code runs on CPU and gloo (see `cpu`).
"""

# ruff: isort: off
import megatron_chimed.engine.megatron  # noqa: F401  (first: it prepares megatron-core)

# ruff: isort: on
from megatron_chimed.config.parallel import (
    ModelSizes,
    ParallelConfig,
    ParallelLayout,
    check_batch,
    plan_layout,
)
from megatron_chimed.engine.device import use_device, uses_cuda
from megatron_chimed.engine.optimizer import Optimizer, UpdateResult
from megatron_chimed.engine.pipeline_schedule import (
    Batch,
    Objective,
    Totals,
    run_schedule,
)
from megatron_chimed.engine.ranks import (
    Ranks,
    collectives,
    connect,
    job_stores,
    join,
    leave,
    peers_may_fail,
    release_memory,
    world_from_environment,
)
from megatron_chimed.engine.rng import (
    one_stream,
    rng_state,
    seed_ranks,
    set_rng_state,
    tensor_parallel_stream,
)
from megatron_chimed.engine.settings import (
    DTYPES,
    EngineSettings,
    engine_settings,
    mark_sequence_parallel,
    mark_tied,
)
from megatron_chimed.engine.shards import (
    ShardedLayer,
    ShardSpec,
    TensorShard,
    flat_shards,
    row_shards,
)
from megatron_chimed.engine.stage_relay import relay_forward, share_decision
from megatron_chimed.engine.trainable import WrappedChunk, make_trainable, synchronize_parameters

__all__ = [
    "DTYPES",
    "Batch",
    "EngineSettings",
    "ModelSizes",
    "Optimizer",
    "ParallelConfig",
    "ParallelLayout",
    "ShardSpec",
    "ShardedLayer",
    "Ranks",
    "Objective",
    "TensorShard",
    "Totals",
    "UpdateResult",
    "WrappedChunk",
    "check_batch",
    "collectives",
    "connect",
    "engine_settings",
    "flat_shards",
    "job_stores",
    "join",
    "leave",
    "make_trainable",
    "mark_sequence_parallel",
    "mark_tied",
    "one_stream",
    "peers_may_fail",
    "plan_layout",
    "relay_forward",
    "release_memory",
    "rng_state",
    "row_shards",
    "run_schedule",
    "seed_ranks",
    "set_rng_state",
    "share_decision",
    "synchronize_parameters",
    "tensor_parallel_stream",
    "use_device",
    "uses_cuda",
    "world_from_environment",
]
