"""The scalar head of a reward model."""

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

from megatron_chimed.engine import EngineSettings, ShardSpec, mark_sequence_parallel

SCORE_KEY = "score.weight"


class RewardHead(torch.nn.Module):
    """score = hidden . weight, without a bias, in fp32 whatever the dtype of the weights.

    Rounded to bf16, scores near 4 would be multiples of 1/64, and near pairs would tie. Memory:
    an fp32 copy of the hidden states of one micro-batch, where the last stage is.

    The weight is whole on every tensor-parallel rank.

    Source: Ouyang et al. (arXiv 2203.02155), section 3.5: the final unembedding layer is replaced.
    """

    def __init__(self, *, settings: EngineSettings, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.group, self.sequence_parallel = group, settings.sequence_parallel
        device = "cpu" if settings.use_cpu_initialization else "cuda"
        self.weight = torch.nn.Parameter(
            torch.empty(1, settings.hidden_size, dtype=settings.params_dtype, device=device)
        )
        mark_sequence_parallel(self.weight, settings)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[s(/t), b, h] -> scores [s, b] fp32."""
        scores = torch.nn.functional.linear(hidden.float(), self.weight.float()).squeeze(-1)
        if not self.sequence_parallel:
            return scores
        # Every rank computes the whole loss from all scores: each keeps its part of the gradient.
        return gather_from_sequence_parallel_region(
            scores, tensor_parallel_output_grad=False, group=self.group
        )

    def shard_specs(self, prefix: str) -> list[ShardSpec]:
        """The whole weight, on every rank."""
        shape = tuple(self.weight.shape)
        key = f"{prefix}{SCORE_KEY}"
        return [ShardSpec(key=key, global_shape=shape, offset=(0, 0), first_row=0, rows=1)]
