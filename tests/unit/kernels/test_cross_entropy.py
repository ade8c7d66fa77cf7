"""Cross-entropy over the whole vocabulary, over its parts, and chunked together with its layer."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels import (
    IGNORED,
    VocabShard,
    linear_cross_entropy,
    vocab_parallel_cross_entropy,
)
from tests.unit.kernels.compare import (
    DTYPES,
    TOLERANCES,
    check_deterministic,
    relative_error,
)

SIZES = [
    (4, 96, 96),  # no padding
    (3, 1100, 1030),  # more than one block of 1024 columns, padding, partial vectors
    (1, 5, 3),  # one row, less than a vector
    (0, 8, 8),  # no token
]


def make(tokens, columns, vocab, *, dtype=torch.float32, device="cpu"):
    torch.manual_seed(0)
    logits = torch.randn(tokens, columns, device=device).to(dtype)
    target = torch.randint(0, vocab, (tokens,), device=device)
    if tokens > 2:
        target[1] = IGNORED
    return logits, target, torch.rand(tokens, device=device)


def exact_loss(logits, target, vocab, z_loss):
    """The definition, by torch's own ops, on the columns that are no padding."""
    logits = logits[:, :vocab]
    z = z_loss * logits.logsumexp(dim=1).square()
    loss = F.cross_entropy(logits, target, reduction="none", ignore_index=IGNORED)
    return loss + z.masked_fill(target == IGNORED, 0.0)


def loss_and_gradient(function, logits, upstream):
    leaf = logits.detach().clone().requires_grad_()
    loss = function(leaf)
    return loss.detach(), torch.autograd.grad(loss, leaf, upstream.to(loss.dtype))[0]


@pytest.mark.t_way(2)
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_cross_entropy_is_close_to_double(device, size, dtype, z_loss):
    logits, target, upstream = make(*size, dtype=dtype, device=device)
    vocab = size[-1]
    logits[:, vocab:] = torch.nan  # padding is not even looked at
    ours = loss_and_gradient(
        lambda x: vocab_parallel_cross_entropy(
            x, target, shard=VocabShard(size=vocab), z_loss=z_loss, backend="fused"
        ),
        logits,
        upstream,
    )
    truth = loss_and_gradient(
        lambda x: exact_loss(x, target, vocab, z_loss), logits.double(), upstream
    )
    assert ours[0].dtype == torch.float32
    # fp32 for every dtype; absolute where a sure prediction leaves next to nothing.
    assert torch.allclose(ours[0].double(), truth[0], rtol=1e-5, atol=1e-6)
    assert ours[1].dtype == dtype
    assert relative_error(ours[1][:, :vocab], truth[1][:, :vocab]) <= TOLERANCES[dtype]
    assert (ours[1][:, vocab:] == 0).all()
    assert (ours[1][target == IGNORED] == 0).all()


def test_backward_overwrites_the_logits(device):
    logits, target, upstream = make(4, 96, 96, device=device)
    leaf = logits.requires_grad_()
    loss = vocab_parallel_cross_entropy(leaf, target, shard=VocabShard(size=96), backend="fused")
    (gradient,) = torch.autograd.grad(loss, leaf, upstream)
    assert gradient.data_ptr() == leaf.data_ptr()


@pytest.mark.parametrize("offset", [-1e4, 0.0, 1e4])
def test_any_offset_of_the_logits_gives_the_same_loss(device, offset):
    logits, target, _ = make(4, 96, 96, device=device)
    logits = logits.round() + offset  # integers: the offset costs no digits
    loss = vocab_parallel_cross_entropy(logits, target, shard=VocabShard(size=96), backend="fused")
    truth = exact_loss(logits.double() - offset, target, 96, 0.0)
    assert relative_error(loss, truth) <= 1e-5


def test_minus_infinity_and_nan(device):
    logits, target, _ = make(3, 1100, 1100, device=device)
    target[:] = 1050
    logits[0, :1049] = -torch.inf  # a whole block without a finite value
    logits[1, 7] = torch.nan
    shard = VocabShard(size=1100)
    loss = vocab_parallel_cross_entropy(logits, target, shard=shard, backend="fused")
    truth = exact_loss(logits.double(), target, 1100, 0.0)
    assert loss.isnan().tolist() == [False, True, False]
    assert torch.allclose(loss[[0, 2]].double(), truth[[0, 2]], rtol=1e-5)


def test_parts_of_the_vocabulary_add_up(device):
    logits, target, _ = make(5, 300, 290, device=device)
    stats = [
        torch.ops.chimed.cross_entropy_stats(
            logits[:, start : start + 100].contiguous(), target, start, 290
        )
        for start in (0, 100, 200)
    ]
    maximum = torch.stack([s[0] for s in stats]).amax(dim=0)
    total = sum(s[1] * (s[0] - maximum).exp() for s in stats)
    whole = torch.ops.chimed.cross_entropy_stats(logits, target, 0, 290)
    assert torch.equal(maximum, whole[0])
    assert torch.allclose(total, whole[1], rtol=1e-5)
    assert torch.equal(sum(s[2] for s in stats), whole[2])


def test_a_rank_that_holds_only_padding_adds_nothing(device):
    logits, target, _ = make(3, 8, 4, device=device)
    maximum, total, _ = torch.ops.chimed.cross_entropy_stats(logits, target, 16, 16)
    assert maximum.tolist() == [-torch.inf] * 3
    assert total.tolist() == [0.0] * 3


def loss_of_a_rank(rank, world_size, logits, target, vocab, backend):
    """Runs on every rank of a gloo group; logits [T, v] are cut by rank."""
    width = logits.shape[1] // world_size
    shard = VocabShard(start=rank * width, size=vocab, group=dist.group.WORLD)
    part = logits[:, rank * width : (rank + 1) * width].clone().requires_grad_()
    loss = vocab_parallel_cross_entropy(part, target, shard=shard, z_loss=1e-2, backend=backend)
    (gradient,) = torch.autograd.grad(loss.sum(), part)
    return loss.detach(), gradient


@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_two_ranks_give_what_one_gives(gloo_pool, backend):
    logits, target, _ = make(6, 64, 50)
    results = gloo_pool.run(loss_of_a_rank, 2, logits, target, 50, backend)
    ones = torch.ones(6, dtype=torch.float64)
    truth = loss_and_gradient(lambda x: exact_loss(x, target, 50, 1e-2), logits.double(), ones)
    for loss, _ in results:
        assert relative_error(loss, truth[0]) <= 1e-5
    whole = torch.cat([gradient for _, gradient in results], dim=1)
    assert relative_error(whole, truth[1]) <= 1e-5


@pytest.mark.t_way(2)
@pytest.mark.parametrize("chunk_tokens", [2, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_chunked_linear_cross_entropy(backend, dtype, chunk_tokens):
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 16).to(dtype), torch.randn(48, 16).to(dtype)
    _, target, upstream = make(7, 48, 40)
    leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
    loss = linear_cross_entropy(
        *leaves,
        target,
        shard=VocabShard(size=40),
        z_loss=1e-2,
        chunk_tokens=chunk_tokens,
        backend=backend,
    )
    gradients = torch.autograd.grad(loss, leaves, upstream)
    doubles = [x.double().requires_grad_() for x in (hidden, weight)]
    truth = exact_loss(doubles[0] @ doubles[1].t(), target, 40, 1e-2)
    truths = torch.autograd.grad(truth, doubles, upstream.double())
    # In bf16 the logits are rounded between the two layers, here as in the unfused model.
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert relative_error(loss.detach(), truth.detach()) <= tolerance
    for value, exact in zip(gradients, truths, strict=True):
        assert value.dtype == dtype
        assert relative_error(value, exact) <= tolerance


def test_same_bits_run_to_run_and_for_any_number_of_threads(device):
    logits, target, upstream = make(40, 1500, 1490, device=device)

    def compute():
        function = lambda x: vocab_parallel_cross_entropy(  # noqa: E731
            x, target, shard=VocabShard(size=1490), backend="fused"
        )
        return loss_and_gradient(function, logits, upstream)

    check_deterministic(compute)


def test_reference_passes_gradcheck():
    torch.manual_seed(0)
    logits = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, IGNORED, 4])
    shard = VocabShard(size=5)
    torch.autograd.gradcheck(
        lambda x: vocab_parallel_cross_entropy(x, target, shard=shard, z_loss=0.1), (logits,)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.tensor([0, 4])}, r"target\[1\] is 4, expected an id in \[0, 4\) or -100"),
        ({"target": torch.tensor([-1, 0])}, r"target\[0\] is -1"),
        ({"target": torch.zeros(2).int()}, "target is torch.int32, expected torch.int64"),
        ({"target": torch.zeros(3).long()}, r"target has shape \[3\], expected \[2\]"),
        ({"logits": torch.zeros(2)}, r"logits have shape \[2\], expected \[T, v/t\]"),
        ({"logits": torch.zeros(2, 6).long()}, "logits is torch.int64"),
        ({"shard": VocabShard(start=-1, size=4)}, "shard starts at -1 of 4 ids"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {
        "logits": torch.zeros(2, 6),
        "target": torch.zeros(2).long(),
        "shard": VocabShard(size=4),
    } | change
    with pytest.raises(KernelError, match=f"cross_entropy: {message}"):
        vocab_parallel_cross_entropy(arguments.pop("logits"), arguments.pop("target"), **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(6, 4)}, r"weight has shape \[6, 4\], expected \[6, 3\]"),
        ({"hidden": torch.zeros(3)}, r"hidden has shape \[3\]"),
        ({"chunk_tokens": 0}, "chunk_tokens is 0, expected at least 1"),
    ],
)
def test_bad_arguments_of_the_chunked_op_are_named(change, message):
    arguments = {
        "hidden": torch.zeros(2, 3),
        "weight": torch.zeros(6, 3),
        "target": torch.zeros(2).long(),
        "shard": VocabShard(size=4),
    } | change
    names = ("hidden", "weight", "target")
    with pytest.raises(KernelError, match=f"cross_entropy: {message}"):
        linear_cross_entropy(*[arguments.pop(name) for name in names], **arguments)
