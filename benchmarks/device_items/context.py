"""What every item is given: the sizes to measure, the device, and where its rows go."""

from dataclasses import dataclass
from pathlib import Path

from kernel_cases import CUDA_SIZES, Sizes

from device_items.gpu import Gpu, StandIn
from device_items.record import Record
from megatron_chimed.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of everything that is measured."""

    kernels: Sizes
    accuracy: Sizes
    """Sizes at which each kernel is compared with float64."""
    past: int
    """Elements that one tensor exceeds: int32 offsets would overflow."""
    copy_bytes: int
    matmul_size: int
    rounds: int
    step_model: ModelConfig
    llama_model: ModelConfig
    seq_length: int
    micro_batch_size: int
    step_rounds: int
    attention: tuple[str, ...]
    """Back ends of torch's attention to compare."""
    tiny_model: ModelConfig
    tiny_seq_length: int
    decode_model: ModelConfig
    decode_batches: tuple[int, ...]
    decode_prompt: int
    decode_steps: int
    tests: tuple[str, ...]
    """Arguments of pytest."""
    sanitizers: tuple[str, ...]
    """Tools of compute-sanitizer; the rehearsal has none and runs their program by itself."""


REAL = Plan(
    kernels=CUDA_SIZES,
    accuracy=Sizes(
        norm=(8192, (5120, 5121)),
        swiglu=(8192, 13824),
        rope=(8192, 40, 128),
        cross_entropy=(8192, (39424, 152064, 39425)),
        softmax=(40, 2048),
        adamw=(4, 1 << 20),
        l2_norm=(4, 1 << 20),
    ),
    past=2**31,
    copy_bytes=4 << 30,
    matmul_size=8192,
    rounds=20,
    step_model=ModelConfig(vocab_size=39424, num_layers=8, max_position_embeddings=4096),
    # Llama 3 8B; the whole of it with its optimizer does not fit one device.
    llama_model=ModelConfig(
        vocab_size=128256,
        hidden_size=4096,
        num_layers=8,
        num_attention_heads=32,
        num_key_value_heads=8,
        ffn_hidden_size=14336,
        max_position_embeddings=8192,
        rope_theta=500000.0,
    ),
    seq_length=4096,
    micro_batch_size=2,
    step_rounds=7,
    attention=("FLASH_ATTENTION", "CUDNN_ATTENTION"),
    tiny_model=ModelConfig(
        vocab_size=8192,
        hidden_size=512,
        num_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        ffn_hidden_size=1408,
        max_position_embeddings=512,
    ),
    tiny_seq_length=512,
    decode_model=ModelConfig(vocab_size=39424, max_position_embeddings=4096),
    decode_batches=(1, 16, 64),
    decode_prompt=31,
    decode_steps=24,
    tests=("-m", "gpu", "tests/unit/kernels", "tests/unit/model", "--gpu"),
    sanitizers=("memcheck", "racecheck"),
)

_TINY = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    num_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    ffn_hidden_size=48,
    max_position_embeddings=64,
)
_TINY_SIZES = Sizes(
    norm=(6, (24, 25)),
    swiglu=(6, 24),
    rope=(6, 2, 8),
    cross_entropy=(6, (40, 41)),
    softmax=(2, 8),
    adamw=(2, 64),
    l2_norm=(2, 64),
)
REHEARSAL = Plan(
    kernels=_TINY_SIZES,
    accuracy=_TINY_SIZES,
    past=4096,
    copy_bytes=1 << 12,
    matmul_size=16,
    rounds=2,
    step_model=_TINY,
    llama_model=_TINY,
    seq_length=16,
    micro_batch_size=2,
    step_rounds=2,
    attention=("MATH",),
    tiny_model=_TINY,
    tiny_seq_length=16,
    decode_model=_TINY,
    decode_batches=(1, 3),
    decode_prompt=5,
    decode_steps=3,
    tests=("tests/unit/test_disk_space.py",),
    sanitizers=(),
)


@dataclass(frozen=True, kw_only=True)
class Context:
    """One item's surroundings."""

    plan: Plan
    gpu: Gpu
    record: Record
    folder: Path
    """Empty; for what the item writes."""

    @property
    def device(self) -> str:
        """`cuda`, or `cpu` in a rehearsal."""
        return self.gpu.device

    @property
    def is_rehearsal(self) -> bool:
        """Whether there is no GPU, and the figures mean nothing."""
        return isinstance(self.gpu, StandIn)


def make_context(*, rehearse: bool, rows: Path, folder: Path) -> Context:
    """The real context, or a rehearsal's."""
    return Context(
        plan=REHEARSAL if rehearse else REAL,
        gpu=StandIn() if rehearse else Gpu(),
        record=Record(rows, on_gpu=not rehearse),
        folder=folder,
    )
