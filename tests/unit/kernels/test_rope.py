"""Rotary position embedding of queries and keys, forward and backward."""

import pytest
import torch

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels import rope
from megatron_chimed.kernels.rope import rope_reference
from tests.unit.kernels.compare import (
    DTYPES,
    TOLERANCES,
    angles_at,
    check_against_double,
    check_deterministic,
)

SHAPES = [
    (5, 4, 4, 128),  # the width of a LLaMA head
    (3, 4, 2, 64),  # grouped queries: fewer keys than queries
    (2, 3, 1, 10),  # d/2 = 5: a partial vector at every level
    (1, 1, 1, 2),  # one token, one pair
    (0, 2, 2, 8),  # no token
]


def make(tokens, n, nk, d, *, dtype=torch.float32, device="cpu"):
    torch.manual_seed(0)
    q = torch.randn(tokens, n, d, device=device).to(dtype)
    k = torch.randn(tokens, nk, d, device=device).to(dtype)
    # Positions as packed samples have them: they start again in the middle.
    positions = torch.arange(tokens, device=device) % 3 + 1000
    return q, k, *angles_at(positions, d)


@pytest.mark.t_way(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rope_is_close_to_double(device, shape, dtype):
    q, k, cos, sin = make(*shape, dtype=dtype, device=device)
    op = lambda q, k: rope(q, k, cos=cos, sin=sin, backend="fused")  # noqa: E731
    exact = lambda q, k: (rope_reference(q, cos, sin), rope_reference(k, cos, sin))  # noqa: E731
    check_against_double(op, exact, (q, k), TOLERANCES[dtype])


def test_it_is_the_rotation_of_transformers():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    q, k, cos, sin = make(6, 4, 2, 32)
    whole = [torch.cat((x, x), dim=-1).unsqueeze(0) for x in (cos, sin)]  # [1, T, d]
    expected = llama.apply_rotary_pos_emb(*(x.transpose(0, 1).unsqueeze(0) for x in (q, k)), *whole)
    for value, truth in zip(rope(q, k, cos=cos, sin=sin), expected, strict=True):
        assert torch.allclose(value, truth.squeeze(0).transpose(0, 1), atol=1e-6)


def test_backward_undoes_forward(device):
    q, k, cos, sin = make(4, 2, 2, 32, device=device)
    leaves = [q.requires_grad_(), k.requires_grad_()]
    turned = rope(*leaves, cos=cos, sin=sin, backend="fused")
    back = torch.autograd.grad(turned, leaves, [y.detach() for y in turned])
    for value, origin in zip(back, leaves, strict=True):
        assert torch.allclose(value, origin, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_of_a_fused_qkv_give_what_their_copies_give(device, dtype):
    tokens, n, d = 5, 3, 16
    torch.manual_seed(0)
    qkv = torch.randn(tokens, 3 * n * d + 1, device=device).to(dtype)[:, 1:]  # rows unaligned
    q, k, _ = (x.view(tokens, n, d) for x in qkv.split(n * d, dim=-1))
    by_head = qkv[:, : 2 * n * d].view(tokens, n, 2, d)[:, :, 0]  # heads not side by side
    cos, sin = angles_at(torch.arange(tokens, device=device), d)
    for pair in ((q, k), (by_head, k)):
        copies = [x.contiguous() for x in pair]
        values = rope(*pair, cos=cos, sin=sin, backend="fused")
        truths = rope(*copies, cos=cos, sin=sin, backend="fused")
        assert all(torch.equal(a, b) for a, b in zip(values, truths, strict=True))
        assert all(y.is_contiguous() for y in values)


def test_same_bits_run_to_run_and_for_any_number_of_threads(device):
    q, k, cos, sin = make(300, 4, 2, 64, device=device)
    check_deterministic(lambda: rope(q, k, cos=cos, sin=sin, backend="fused"))


def test_reference_passes_gradcheck():
    q, k, cos, sin = make(2, 2, 1, 4)
    doubles = [x.double().requires_grad_() for x in (q, k)]
    torch.autograd.gradcheck(lambda q, k: rope(q, k, cos=cos, sin=sin), doubles)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.ones(2, 3)}, r"q has shape \[2, 3\], expected \[tokens, heads, an even"),
        ({"q": torch.ones(2, 3, 7)}, r"q has shape \[2, 3, 7\]"),
        ({"k": torch.ones(3, 3, 8)}, r"k has shape \[3, 3, 8\], expected \[2, 3, 8\]"),
        ({"k": torch.ones(2, 3, 8).half()}, "k has dtype torch.float16, but q has torch.float32"),
        ({"cos": torch.ones(2, 8)}, r"cos has shape \[2, 8\], expected \[2, 4\]"),
        (
            {"sin": torch.ones(2, 4).bfloat16()},
            "sin is torch.bfloat16 on cpu, expected torch.float",
        ),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {
        "q": torch.ones(2, 3, 8),
        "k": torch.ones(2, 3, 8),
        "cos": torch.ones(2, 4),
        "sin": torch.ones(2, 4),
    } | change
    with pytest.raises(KernelError, match=f"rope: {message}"):
        rope(arguments.pop("q"), arguments.pop("k"), **arguments)
