"""The configuration that megatron-core's layers and schedules read.

`TransformerConfig` has 247 fields for models that are not ours. megatron-core's parallel layers,
schedules and optimizers need `ModelParallelConfig` and the few fields below.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from megatron.core import ModelParallelConfig

from megatron_chimed.config.parallel import ParallelLayout
from megatron_chimed.engine.device import uses_cuda

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class EngineSettings(ModelParallelConfig):
    """`ModelParallelConfig` plus the attributes that schedules and gradient reduction look up."""

    no_sync_func: Callable | list[Callable] | None = None
    grad_sync_func: Callable | list[Callable] | None = None
    hidden_size: int = 0
    calculate_per_token_loss: bool = True
    """Losses are sums and gradients are divided once by the tokens of the whole global batch."""
    moe_router_enable_expert_bias: bool = False
    moe_router_load_balancing_type: str = "none"
    num_moe_experts: int | None = None
    qk_layernorm: bool = False
    fine_grained_activation_offloading: bool = False
    fp8: str | None = None
    fp4: str | None = None
    cuda_graph_impl: str = "none"
    cuda_graph_scope: tuple[str, ...] = ()
    mtp_num_layers: int | None = None
    gated_linear_unit: bool = True


def engine_settings(
    layout: ParallelLayout,
    *,
    hidden_size: int,
    precision: str,
    deterministic: bool = False,
    fused_weight_gradients: bool = False,
) -> EngineSettings:
    """The settings of one job.

    Args:
        layout: The checked layout.
        hidden_size: Width h of the activations sent between pipeline stages.
        precision: `fp32`, `bf16` or `fp16`: dtype of parameters and activations.
        deterministic: Make megatron-core use deterministic kernels.
        fused_weight_gradients: The product that makes a weight gradient adds it to the fp32 buffer
            of `make_trainable` itself; off, torch makes a gradient, which a second pass adds.
    """
    interleaved = layout.virtual_pipeline_parallel_size > 1
    dtype = DTYPES[precision]
    return EngineSettings(
        tensor_model_parallel_size=layout.tensor_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_parallel_size,
        virtual_pipeline_model_parallel_size=(
            layout.virtual_pipeline_parallel_size if interleaved else None
        ),
        sequence_parallel=layout.sequence_parallel,
        hidden_size=hidden_size,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        # Weights are drawn by name after construction (see model.init), the same for every layout.
        perform_initialization=False,
        use_cpu_initialization=not uses_cuda(),
        gradient_accumulation_fusion=fused_weight_gradients,
        deterministic_mode=deterministic,
        # Batched point-to-point pairs the wrong messages when two interleaved stages are each
        # other's both neighbours: it trains wrong without an error. Never batched with chunks.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        # megatron-core would stop the host after each batch until the device is idle, against a
        # race in versions of torch older than those that we allow. Waiting for the requests, which
        # it does before, orders the current stream behind the messages: enough for their readers,
        # and for memory that is freed once it was sent.
        batch_p2p_sync=False,
        # Frees activations once sent. A gloo send reads the memory after the call returned, so on
        # CPU an overlapped send would transmit freed memory: measured, wrong gradients without an
        # error.
        deallocate_pipeline_outputs=uses_cuda(),
        autocast_dtype=None,
    )


def mark_tied(weight: torch.nn.Parameter, *, is_whole: bool, is_copy: bool) -> None:
    """Marks the embedding of a model whose head is the same weight, as megatron-core expects it.

    On two pipeline stages it sums the two gradients over its embedding group. There each copy gets
    a bucket of its own, so that the distributed optimizer cuts both in the same places.

    Args:
        weight: The embedding, or the last stage's copy.
        is_whole: Embedding and head are on one chunk: one parameter, whose gradient by the head is
            accumulated by the product itself and that by the embedding is added to it.
        is_copy: Not the first stage's: the gradient norm leaves it out.
    """
    marked = cast(Any, weight)
    marked.zero_out_wgrad = is_whole
    marked.shared_embedding = not is_whole
    marked.shared = is_copy


def mark_sequence_parallel(parameter: torch.nn.Parameter, settings: EngineSettings) -> None:
    """Marks a parameter that every tensor-parallel rank holds whole.

    Under sequence parallelism each rank sees its part of s: megatron-core sums the gradients of
    marked parameters over the tensor-parallel ranks.
    """
    cast(Any, parameter).sequence_parallel = settings.sequence_parallel
