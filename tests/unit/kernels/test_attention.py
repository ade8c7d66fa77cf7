"""Causal attention in blocks, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels import attention, causal_attention
from megatron_chimed.kernels.attention import BLOCK, TOKENS
from tests.unit.kernels.compare import TOLERANCES, check_against_double, relative_error

SHAPES = [  # s, b, n, k, d
    (2 * BLOCK, 2, 3, 3, 16),  # whole blocks
    (2 * BLOCK + 5, 2, 4, 2, 20),  # a partial block, grouped queries, an odd width
    (7, 1, 4, 1, 8),  # less than a block, one key head
    (1, 2, 2, 2, 4),  # one token
    (0, 2, 2, 2, 4),  # none: torch's kernel
]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def any_length(monkeypatch):
    monkeypatch.setattr(attention, "TOKENS", range(1, 1000))


def make(s, b, n, k, d):
    torch.manual_seed(0)
    return tuple(torch.randn(s, b, heads, d) for heads in (n, k, k))


def exact(query, key, value):
    """The formula, with every score."""
    group = query.shape[2] // key.shape[2]
    q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return (scores.masked_fill(future, -torch.inf).softmax(-1) @ v).permute(2, 0, 1, 3)


def blocked(*inputs, keep=True):
    return causal_attention(*inputs, keep=keep, backend="fused")


def gradients(op, inputs):
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = op(*leaves)
    return output.detach(), *torch.autograd.grad(output.square().sum(), leaves)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_close_to_double(any_length, shape, keep):
    check_against_double(
        lambda *inputs: blocked(*inputs, keep=keep), exact, make(*shape), TOLERANCES[torch.float32]
    )


def test_large_scores_do_not_overflow(any_length):
    query, key, value = make(70, 1, 2, 2, 8)
    check_against_double(blocked, exact, (60 * query, key, value), 1e-4)


def test_probabilities_formed_again_give_the_same_bits(any_length):
    inputs = make(*SHAPES[1])
    for kept, again in zip(
        gradients(blocked, inputs),
        gradients(lambda *x: blocked(*x, keep=False), inputs),
        strict=True,
    ):
        assert torch.equal(kept, again)


def test_views_into_a_fused_projection_give_what_their_copies_give(any_length):
    qkv = torch.randn(80, 2, 3, 2, 16)  # s, b, [q, k, v], n, d
    views = qkv.unbind(2)
    results = gradients(blocked, views), gradients(blocked, [x.contiguous() for x in views])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert results[0][0].is_contiguous()


def test_a_query_does_not_see_later_tokens(any_length):
    query, key, value = make(100, 1, 2, 2, 8)
    expected = blocked(query, key, value)[:70]
    key[70:], value[70:] = 1e4, torch.nan
    assert torch.equal(blocked(query, key, value)[:64], expected[:64])
    value[70:] = 1e4
    assert torch.equal(blocked(query, key, value)[:70], expected)


def test_same_bits_run_to_run(any_length):
    inputs = make(*SHAPES[0])
    first, again = gradients(blocked, inputs), gradients(blocked, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.fixture
def left_to_torch(monkeypatch):
    """A list that grows by one with each call of torch's attention."""
    calls, attend = [], F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *x, **y: calls.append(y) or attend(*x, **y)
    )
    return calls


@pytest.mark.parametrize("s", [TOKENS[0], TOKENS[-1]])
def test_blocks_are_taken_where_they_pay(s, left_to_torch):
    inputs = make(s, 1, 2, 1, 8)
    attended = causal_attention(*inputs)
    assert not left_to_torch
    assert relative_error(attended, exact(*(x.double() for x in inputs))) <= 1e-5


@pytest.mark.parametrize(
    ("dtype", "s", "threads", "backend"),
    [
        (torch.bfloat16, 128, 1, "auto"),
        (torch.float64, 128, 1, "auto"),
        (torch.float32, TOKENS[0] - 1, 1, "auto"),
        (torch.float32, TOKENS[-1] + 1, 1, "auto"),
        (torch.float32, 128, 2, "auto"),
        (torch.float32, 128, 1, "reference"),
    ],
)
def test_all_else_is_left_to_torch(dtype, s, threads, backend, left_to_torch):
    torch.set_num_threads(threads)
    inputs = [x.to(dtype) for x in make(s, 1, 4, 2, 8)]
    attended = causal_attention(*inputs, backend=backend)
    (options,) = left_to_torch
    assert options == {"attn_mask": None, "dropout_p": 0.0, "is_causal": True, "enable_gqa": True}
    assert attended.is_contiguous()
    truth = exact(*(x.double() for x in inputs))
    assert relative_error(attended, truth) <= TOLERANCES.get(dtype, 1e-12)


def test_bad_arguments_are_named():
    query, key, value = make(4, 2, 4, 2, 8)
    cases = {
        r"value has shape \[3, 2, 2, 8\], expected \[4, 2, 2, 8\]": (query, key, value[:3]),
        r"key has shape \[4, 1, 2, 8\], expected \[4, 2, 2, 8\]": (query, key[:, :1], value),
        r"key \[4, 2, 3, 8\], expected .* k a divisor of n": (query, query[:, :, :3], value),
        "value has dtype torch.float16, but query has torch.float32": (query, key, value.half()),
    }
    for message, arguments in cases.items():
        with pytest.raises(KernelError, match=f"causal_attention: .*{message}"):
            causal_attention(*arguments)
