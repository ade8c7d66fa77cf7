"""Settings of commands that run several checkpoints in turn: layout, batches and precision."""

from dataclasses import dataclass
from typing import Literal

from megatron_chimed.config.parallel import ParallelConfig
from megatron_chimed.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """Parallel layout of drawing and scoring; changes results by rounding at most."""

    tensor_parallel_size: int = 1
    """Number of ranks that split each weight matrix."""
    pipeline_parallel_size: int = 1
    """Number of ranks that split the layers; further ranks hold replicas."""
    max_batch: int = 64
    """Number of answers drawn together in each replica."""
    batch_tokens: int = 8192
    """Tokens in a scoring forward pass of each replica."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Precision of weights and activations; None: that of the stored weights."""
    timeout_seconds: float = 600.0
    """How long a rank waits for its peers, in seconds."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("max_batch", "batch_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"inference.{name} is {getattr(self, name)}: set 1 or more.")

    def parallel(self) -> ParallelConfig:
        """The settings of the parallel layout."""
        return ParallelConfig(
            tensor_parallel_size=self.tensor_parallel_size,
            pipeline_parallel_size=self.pipeline_parallel_size,
            timeout_seconds=self.timeout_seconds,
        )
