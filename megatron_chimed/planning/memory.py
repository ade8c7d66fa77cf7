"""Memory of each pipeline rank: exact for parameters, measured on fake tensors for the rest.

Not counted: fragmentation of the allocator, communication buffers, the working set of one layer.
"""

import dataclasses
from dataclasses import dataclass

import torch

from megatron_chimed.config.training import TrainConfig
from megatron_chimed.engine import (
    DTYPES,
    ParallelLayout,
    Ranks,
    check_batch,
    engine_settings,
    seed_ranks,
)
from megatron_chimed.kernels import bind
from megatron_chimed.kernels.cross_entropy import CROSS_ENTROPY
from megatron_chimed.kernels.native import use_fused
from megatron_chimed.model import LoraConfig, ModelConfig, Transformer, build_chunks
from megatron_chimed.planning.fake_world import fake_rank


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes on one rank of a pipeline stage."""

    stage: int
    parameters: int
    """Elements in memory, vocabulary padding included."""
    weights: int
    gradients: int
    optimizer: int
    """Moments, and fp32 master weights where parameters are half precision."""
    activations: int
    """Saved for the backward pass, for all micro-batches in flight."""
    micro_batches_in_flight: float
    host: int = 0
    """In host memory, not part of `total`."""

    def with_host_optimizer(self) -> "RankMemory":
        """The same rank with `optim.offload`."""
        return dataclasses.replace(self, optimizer=0, host=self.optimizer)

    @property
    def total(self) -> int:
        """Sum of all."""
        return self.weights + self.gradients + self.optimizer + self.activations


def plan_memory(
    model: ModelConfig,
    layout: ParallelLayout,
    *,
    training: TrainConfig,
    seq_length: int,
    lora: LoraConfig | None = None,
    backend: str = "auto",
) -> list[RankMemory]:
    """Memory of the first rank of every pipeline stage; the others of a stage need the same.

    Args:
        model: The architecture.
        layout: A checked layout of any world size.
        training: Gives the precision, and the batch, which is checked against the layout.
        seq_length: Tokens of a sample.
        lora: With a rank, only adapters have gradients and optimizer state.
        backend: Of the ops (`kernels.bind`): the references need more than fused kernels.
    """
    micro_batch_size, precision = training.micro_batch_size, training.precision
    num_microbatches = check_batch(
        layout,
        micro_batch_size=micro_batch_size,
        global_batch_size=training.global_batch_size,
    )
    stages = layout.pipeline_parallel_size
    ranks_per_stage = layout.world_size // stages
    plans = []
    for stage in range(stages):
        with fake_rank(layout, stage * ranks_per_stage) as ranks:
            seed_ranks(0, ranks)
            settings = engine_settings(layout, hidden_size=model.hidden_size, precision=precision)
            chunks = build_chunks(
                model, settings=settings, ranks=ranks, lora=lora, kernels=bind(backend)
            )
            held = [p for chunk in chunks for p in chunk.parameters()]
            parameters = sum(p.numel() for p in held)
            trained = sum(p.numel() for p in held if p.requires_grad)
            saved = [_saved_bytes(chunk, micro_batch_size, seq_length, ranks) for chunk in chunks]
            loss = _loss_bytes(chunks[-1], micro_batch_size * seq_length, ranks, backend)
        in_flight = _in_flight(layout, stage, num_microbatches)
        element = DTYPES[precision].itemsize
        shards = layout.data_parallel_size if layout.config.distributed_optimizer else 1
        plans.append(
            RankMemory(
                stage=stage,
                parameters=parameters,
                weights=parameters * element,
                gradients=trained * 4,
                optimizer=-(-trained * (8 + (4 if element < 4 else 0)) // shards),
                activations=round(sum(saved) / len(saved) * in_flight) + loss,
                micro_batches_in_flight=in_flight / len(saved),
            )
        )
    return plans


def _loss_bytes(chunk: Transformer, num_tokens: int, ranks: Ranks, backend: str) -> int:
    """Working memory of the loss beside the logits: three fp32 copies of them in the reference.

    The fused loss reads the logits once and writes their gradient over them.
    """
    probe = torch.empty(0, dtype=chunk.config.params_dtype, device=ranks.device)
    if not chunk.post_process or use_fused(CROSS_ENTROPY, backend, probe):
        return 0
    model = chunk.model_config
    if model.head == "score":
        return 0
    tensor = ranks.layout.tensor_parallel_size
    columns = model.padded_vocab_size(tensor) // tensor
    return 3 * 4 * columns * min(num_tokens, model.chunk_tokens or num_tokens)


def _in_flight(layout: ParallelLayout, stage: int, num_microbatches: int) -> float:
    """Chunk passes whose activations a stage holds at once.

    Source: Narayanan et al. (arXiv 2104.04473), section 2.2: 1F1B holds as many as there are stages
    from here to the end; interleaved stages warm up with 2 (p - stage - 1) + (v - 1) p passes.
    """
    stages, chunks = layout.pipeline_parallel_size, layout.virtual_pipeline_parallel_size
    if chunks == 1:
        return min(num_microbatches, stages - stage)
    warmup = 2 * (stages - stage - 1) + (chunks - 1) * stages + 1
    return min(num_microbatches * chunks, warmup)


def _saved_bytes(chunk: Transformer, micro_batch_size: int, seq_length: int, ranks: Ranks) -> int:
    """Bytes that one forward pass of a chunk saves for its backward pass, parameters excluded."""
    held = {p.untyped_storage()._cdata for p in chunk.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in held:
            saved[storage._cdata] = storage
        return tensor

    split = ranks.layout.tensor_parallel_size if ranks.layout.sequence_parallel else 1
    settings = chunk.config
    if not chunk.pre_process:
        chunk.set_input_tensor(
            [
                torch.empty(
                    (seq_length // split, micro_batch_size, settings.hidden_size),
                    dtype=settings.params_dtype,
                    device=ranks.device,
                    requires_grad=True,
                )
            ]
        )
    tokens = torch.zeros((micro_batch_size, seq_length), dtype=torch.int64, device=ranks.device)
    positions = torch.arange(seq_length, device=ranks.device).expand(micro_batch_size, -1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = chunk(tokens, positions)
    # Outputs released by selective recomputation have an empty storage by now.
    total = sum(storage.nbytes() for storage in saved.values())
    if chunk.post_process:  # the loss keeps the logits, and overwrites them with their gradient
        total += output.numel() * output.element_size()
    return total
