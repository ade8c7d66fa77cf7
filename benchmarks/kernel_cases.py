"""Cases of benchmarks/kernels.py: sizes, our op, baselines and the exact formula."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import kernel_baselines as baselines
import torch
import torch.nn.functional as F

from megatron_chimed import kernels
from megatron_chimed.kernels import native

Tensors = tuple[torch.Tensor, ...]
# Columns of Ziya-13B: hidden size, ffn size, padded vocabulary, heads, head width.
H, FFN, VOCAB, HEADS, HEAD_DIM = 5120, 13824, 39424, 40, 128
EPS = 1e-6
OURS, OURS_IN_TRITON = "ours", "ours in Triton"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One op at one size in one dtype."""

    op: str
    size: str
    dtype: torch.dtype
    make: Callable[[], Tensors]
    """Makes a set of random inputs."""
    variants: dict[str, Callable]
    """`ours` and the baselines: inputs -> output or tuple of outputs."""
    exact: Callable | None
    """The same in plain torch, for the comparison in float64; None: the op has no gradient."""
    forward_bytes: int
    """Bytes that forward must move if each tensor is read and written once."""
    backward_bytes: int = 0
    """The same of backward."""
    compiled: frozenset[str] = frozenset()
    """Variants that torch compiles at their first call, which takes seconds."""

    @property
    def traffic(self) -> int:
        """Bytes of forward and backward."""
        return self.forward_bytes + self.backward_bytes


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The size of each op's cases."""

    norm: tuple[int, tuple[int, ...]]
    """Rows, and widths h."""
    swiglu: tuple[int, int]
    """Rows, f."""
    rope: tuple[int, int, int]
    """Tokens, heads, head width."""
    cross_entropy: tuple[int, tuple[int, ...]]
    """Rows, and vocabularies v."""
    softmax: tuple[int, int]
    """Heads, s."""
    adamw: tuple[int, int]
    """Tensors, elements of each."""
    l2_norm: tuple[int, int]
    """Tensors, elements of each."""


CUDA_SIZES = Sizes(
    norm=(8192, (H,)),
    swiglu=(8192, FFN),
    rope=(8192, HEADS, HEAD_DIM),
    cross_entropy=(8192, (VOCAB,)),
    softmax=(HEADS, 2048),
    adamw=(32, 16 << 20),
    l2_norm=(64, 16 << 20),
)
CPU_SIZES = Sizes(
    norm=(2048, (1024, H)),
    swiglu=(1024, FFN),
    rope=(2048, 16, HEAD_DIM),
    cross_entropy=(512, (VOCAB,)),
    softmax=(8, 512),
    adamw=(8, 1 << 20),
    l2_norm=(24, 1 << 20),
)


def all_cases(device: str, dtype: torch.dtype, sizes: Sizes | None = None) -> Iterator[Case]:
    """Every case of a device in one dtype; without `sizes`, those of the device."""
    sizes = sizes or (CUDA_SIZES if device == "cuda" else CPU_SIZES)
    for build in (_norms, _swiglu, _rope, _cross_entropy, _softmax, _adamw, _l2_norm):
        yield from build(device, dtype, sizes)


def _random(device: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(shape, device=device).to(dtype)


def _backends(device: str, op: Callable) -> dict[str, Callable]:
    """Our op by its compiled kernel, and on CUDA by its Triton kernel where there is one.

    Args:
        device: `cpu` or `cuda`.
        op: Backend -> variant.
    """
    found = {OURS: op("fused")}
    if device == "cuda" and "triton" in native.BACKENDS:
        found[OURS_IN_TRITON] = op("triton")
    return found


def _millions(size: int) -> str:
    return f"{size >> 20}M" if size >= 1 << 20 else str(size)


def _norms(device: str, dtype: torch.dtype, sizes: Sizes) -> Iterator[Case]:
    rows, widths = sizes.norm
    for h in widths:
        tensor = rows * h * dtype.itemsize

        def make(count, h=h):
            inputs = [_random(device, dtype, rows, h) for _ in range(count)]
            return (*inputs, 1 + 0.1 * _random(device, dtype, h))

        yield Case(
            op="rms_norm",
            size=f"{rows}x{h}",
            dtype=dtype,
            make=lambda make=make: make(1),
            variants={
                **_backends(
                    device, lambda b: lambda x, w: kernels.rms_norm(x, w, eps=EPS, backend=b)
                ),
                "F.rms_norm": lambda x, w: F.rms_norm(x, w.shape, w, EPS),
                "eager": lambda x, w: kernels.rms_norm(x, w, eps=EPS, backend="reference"),
                **baselines.rms_norm(device, EPS),
            },
            exact=lambda x, w: F.rms_norm(x, w.shape, w, EPS),
            forward_bytes=2 * tensor,
            backward_bytes=3 * tensor,
        )
        yield Case(
            op="add_rms_norm",
            size=f"{rows}x{h}",
            dtype=dtype,
            make=lambda make=make: make(2),
            variants={
                **_backends(
                    device,
                    lambda b: lambda x, r, w: kernels.add_rms_norm(x, r, w, eps=EPS, backend=b),
                ),
                "add, F.rms_norm": _add_rms_norm,
            },
            exact=_add_rms_norm,
            forward_bytes=4 * tensor,
            backward_bytes=4 * tensor,
        )


def _add_rms_norm(x, residual, weight):
    summed = x + residual
    return F.rms_norm(summed, weight.shape, weight, EPS), summed


def _swiglu(device: str, dtype: torch.dtype, sizes: Sizes) -> Iterator[Case]:
    rows, f = sizes.swiglu

    def eager(gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    yield Case(
        op="swiglu",
        size=f"{rows}x{f}",
        dtype=dtype,
        make=lambda: (_random(device, dtype, rows, 2 * f),),
        variants={
            **_backends(device, lambda b: lambda x: kernels.swiglu(x, backend=b)),
            "eager": eager,
            **baselines.swiglu(device),
        },
        exact=eager,
        forward_bytes=3 * rows * f * dtype.itemsize,
        backward_bytes=5 * rows * f * dtype.itemsize,
        compiled=frozenset({baselines.LOCAL}),
    )


def _rope(device: str, dtype: torch.dtype, sizes: Sizes) -> Iterator[Case]:
    tokens, heads, width = sizes.rope
    positions = torch.arange(tokens, device=device)
    turned = positions[:, None] * kernels.rope_frequencies(width, device=positions.device)
    cos, sin = turned.cos(), turned.sin()
    halves = torch.arange(width // 2, device=device).repeat(2)
    angles = positions[:, None] / 10000.0 ** (2 * halves / width)  # [T, d]
    wide_cos, wide_sin = (torch.cat((x, x), dim=-1).unsqueeze(1) for x in (cos, sin))  # [T, 1, d]

    def eager(q, k):
        return tuple(_turn(x, wide_cos, wide_sin) for x in (q, k))

    yield Case(
        op="rope",
        size=f"{tokens}x{heads}x{width}",
        dtype=dtype,
        make=lambda: tuple(_random(device, dtype, tokens, heads, width) for _ in range(2)),
        variants={
            **_backends(
                device, lambda b: lambda q, k: kernels.rope(q, k, cos=cos, sin=sin, backend=b)
            ),
            "eager": eager,
            **baselines.rope(angles),
        },
        exact=eager,
        forward_bytes=4 * tokens * heads * width * dtype.itemsize,
        backward_bytes=4 * tokens * heads * width * dtype.itemsize,
    )


def _turn(x, cos, sin):
    """The formula of transformers and megatron-core: chunk, negate, concatenate, two products."""
    wide = x if x.dtype == torch.float64 else x.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def _cross_entropy(device: str, dtype: torch.dtype, sizes: Sizes) -> Iterator[Case]:
    rows, vocabularies = sizes.cross_entropy
    for v in vocabularies:
        target = torch.randint(0, v, (rows,), device=device)
        logits = rows * v * dtype.itemsize
        yield Case(
            op="cross_entropy",
            size=f"{rows}x{v}",
            dtype=dtype,
            make=lambda v=v: (_random(device, dtype, rows, v),),
            variants=_losses(device, dtype, target, v),
            exact=lambda x, target=target: F.cross_entropy(x, target, reduction="none"),
            forward_bytes=logits,
            backward_bytes=2 * logits,
            compiled=frozenset({baselines.LOCAL}),
        )


def _losses(device: str, dtype: torch.dtype, target: torch.Tensor, v: int) -> dict[str, Callable]:
    shard = kernels.VocabShard(size=v)

    def ours(backend):
        # Backward overwrites the input set: later rounds of all variants read small numbers there.
        return lambda x: kernels.vocab_parallel_cross_entropy(
            x, target, shard=shard, backend=backend
        )

    def torch_native(x):
        return F.cross_entropy(x, target, reduction="none").float()

    def torch_wide(x):
        return F.cross_entropy(x.float(), target, reduction="none")

    variants = _backends(device, ours) | {"F.cross_entropy fp32": torch_wide}
    if dtype != torch.float32:
        variants[f"F.cross_entropy {str(dtype)[6:]}"] = torch_native
    return variants | baselines.cross_entropy(device, target)


def _softmax(device: str, dtype: torch.dtype, sizes: Sizes) -> Iterator[Case]:
    heads, s = sizes.softmax
    future = torch.ones(s, s, dtype=torch.bool, device=device).triu(1)
    scale = HEAD_DIM**-0.5

    def eager(x):
        wide = x if x.dtype == torch.float64 else x.float()
        return (wide * scale).masked_fill(future, -torch.inf).softmax(dim=-1).to(x.dtype)

    yield Case(
        op="scaled_masked_softmax",
        size=f"1x{heads}x{s}x{s} causal",
        dtype=dtype,
        make=lambda: (_random(device, dtype, 1, heads, s, s),),
        variants={
            "ours": lambda x: kernels.scaled_masked_softmax(
                x, scale=scale, causal=True, backend="fused"
            ),
            "eager": eager,
        },
        exact=eager,
        forward_bytes=2 * heads * s * s * dtype.itemsize,
        backward_bytes=3 * heads * s * s * dtype.itemsize,
    )


def _adamw(device: str, dtype: torch.dtype, sizes: Sizes) -> Iterator[Case]:
    count, size = sizes.adamw

    def make():
        kinds = [torch.float32, dtype, torch.float32, torch.float32, torch.bfloat16]
        return tuple(_random(device, k, size).abs() for k in kinds for _ in range(count))

    def ours(*tensors):
        p, g, m, v, copies = (tensors[i * count : (i + 1) * count] for i in range(5))
        step = kernels.AdamWStep(lr=1e-4, step=10, weight_decay=0.1, grad_scale=0.5)
        kernels.adamw_(
            p, g, exp_avgs=m, exp_avg_sqs=v, copies=copies, settings=step, backend="fused"
        )

    def torch_fused(*tensors):
        p, g, m, v, copies = (list(tensors[i * count : (i + 1) * count]) for i in range(5))
        wide = torch._foreach_mul([x.float() for x in g], 0.5)
        steps = [torch.full((), 10.0, device=device)] * count  # a copy cannot be captured
        options = {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.1, "eps": 1e-8}
        flags = {"amsgrad": False, "maximize": False}
        torch._fused_adamw_(p, wide, m, v, [], steps, lr=1e-4, **options, **flags)
        torch._foreach_copy_(copies, p)

    yield Case(
        op="adamw",
        size=f"{count}x{_millions(size)}, scale, bf16 copy",
        dtype=dtype,
        make=make,
        variants={"ours": ours, "torch fused, mul, copy": torch_fused},
        exact=None,
        forward_bytes=count * size * (26 + dtype.itemsize),
    )


def _l2_norm(device: str, dtype: torch.dtype, sizes: Sizes) -> Iterator[Case]:
    count, size = sizes.l2_norm
    yield Case(
        op="l2_norm",
        size=f"{count}x{_millions(size)}",
        dtype=dtype,
        make=lambda: tuple(_random(device, dtype, size) for _ in range(count)),
        variants={
            "ours": lambda *x: kernels.l2_norm(x, backend="fused"),
            "torch foreach": lambda *x: torch.stack(
                torch._foreach_norm(x, 2.0, dtype=torch.float32)
            ).norm(),
        },
        exact=None,
        forward_bytes=count * size * dtype.itemsize,
    )
