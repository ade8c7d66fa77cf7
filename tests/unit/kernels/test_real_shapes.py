"""The kernels at the widths of real models: h 5120, f 13824, v 39424 and 152064.

On a GPU with 8192 rows, on the CPU with a few: there the width alone can be wrong.
"""

import pytest
import torch
import torch.nn.functional as F

from megatron_chimed import kernels
from megatron_chimed.kernels import native
from megatron_chimed.kernels.rms_norm import RMS_NORM
from tests.unit.kernels.compare import TOLERANCES, angles_at, check_against_double, relative_error

H, F_13B, HEADS, HEAD_DIM, EPS = 5120, 13824, 40, 128, 1e-6
DTYPE = torch.bfloat16
TOLERANCE = TOLERANCES[DTYPE]


@pytest.fixture(params=[("cpu", 3), pytest.param(("cuda", 8192), marks=pytest.mark.gpu)], ids=str)
def place(request):
    """Device and rows."""
    device, rows = request.param
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device, or no option --gpu")
    if reason := native.why_not_fused(RMS_NORM, device):
        pytest.skip(f"no fused kernels: {reason}")
    return device, rows


def random(device, *shape):
    return torch.randn(shape, device=device).to(DTYPE)


def test_rms_norm(place):
    device, rows = place
    check_against_double(
        lambda x, w: kernels.rms_norm(x, w, eps=EPS, backend="fused"),
        lambda x, w: F.rms_norm(x, (H,), w, EPS),
        (random(device, rows, H), 1 + 0.1 * random(device, H)),
        TOLERANCE,
    )


def test_add_rms_norm(place):
    device, rows = place
    check_against_double(
        lambda x, r, w: kernels.add_rms_norm(x, r, w, eps=EPS, backend="fused"),
        lambda x, r, w: (F.rms_norm(x + r, (H,), w, EPS), x + r),
        (random(device, rows, H), random(device, rows, H), 1 + 0.1 * random(device, H)),
        TOLERANCE,
    )


def test_swiglu(place):
    device, rows = place
    check_against_double(
        lambda x: kernels.swiglu(x, backend="fused"),
        lambda x: F.silu(x[:, :F_13B]) * x[:, F_13B:],
        (random(device, rows, 2 * F_13B),),
        TOLERANCE,
    )


def test_rope(place):
    device, rows = place
    cos, sin = angles_at(torch.arange(rows, device=device), HEAD_DIM)

    def exact(*heads):
        wide_cos, wide_sin = (torch.cat((x, x), dim=-1)[:, None].double() for x in (cos, sin))
        halves = [x.chunk(2, dim=-1) for x in heads]
        return tuple(
            x * wide_cos + torch.cat((-second, first), dim=-1) * wide_sin
            for x, (first, second) in zip(heads, halves, strict=True)
        )

    check_against_double(
        lambda q, k: kernels.rope(q, k, cos=cos, sin=sin, backend="fused"),
        exact,
        tuple(random(device, rows, HEADS, HEAD_DIM) for _ in range(2)),
        TOLERANCE,
    )


@pytest.mark.parametrize("v", [39424, 152064])
def test_cross_entropy(place, v):
    device, rows = place
    rows = min(rows, (1 << 29) // v)  # float64 copies of the larger one must fit beside it
    target = torch.randint(0, v, (rows,), device=device)
    shard = kernels.VocabShard(size=v)
    check_against_double(
        lambda x: kernels.vocab_parallel_cross_entropy(x, target, shard=shard, backend="fused"),
        lambda x: F.cross_entropy(x, target, reduction="none"),
        (random(device, rows, v),),
        TOLERANCE,
    )


@pytest.mark.parametrize("offset", [0, 1, 2, 4])
def test_the_norm_of_a_shard_that_starts_anywhere(place, offset):
    """At 32, 64 and 128 ranks the shards of 13B start at multiples of 4, 2 and 1 elements."""
    device, rows = place
    shard = torch.randn(offset + rows * H, device=device)[offset:]
    found = kernels.l2_norm([shard], backend="fused")
    assert relative_error(found, shard.double().norm()) <= TOLERANCES[torch.float32]
