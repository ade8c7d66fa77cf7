"""Attention within segments: the formula, in both back ends and in the layout of CUDA's kernel."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from megatron_chimed.model import segments as segments_module
from megatron_chimed.model.attention import BACKENDS
from megatron_chimed.model.segments import (
    Segments,
    segmented_attention,
    variable_length_attention,
    variable_length_kernel,
    why_dense,
)
from tests.unit.model.test_attention import (
    DTYPES,
    HEADS,
    TOLERANCES,
    formula,
    relative_error,
    tensors,
)

# Two rows: one cut in three, one whole.
IDS = torch.tensor([[0, 0, 0, 0, 1, 2, 2, 2, 2], [0] * 9], dtype=torch.int32)
STARTS = ([0, 0, 0, 0, 4, 5, 5, 5, 5], [0] * 9)


def visible(b, s):
    return torch.arange(STARTS[b][s], s + 1)


def attend(backend, query, key, value, ids=IDS):
    return BACKENDS[backend](query, key, value, mask=None, segments=Segments(ids), dropout=0.0)


def test_it_knows_where_segments_lie():
    segments = Segments(IDS)
    assert segments.lengths == [[4, 1, 4], [9]]
    assert segments.bounds.tolist() == [0, 4, 5, 9, 18]
    assert segments.bounds.dtype == torch.int32
    assert segments.longest == 9
    for b in range(2):
        for s in range(9):
            assert segments.mask[b, 0, s].nonzero().flatten().tolist() == visible(b, s).tolist()


@pytest.mark.t_way(2)
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_formula(backend, heads, precision):
    query, key, value = tensors(heads, dtype=DTYPES[precision])
    found = attend(backend, query, key, value)
    assert found.dtype == DTYPES[precision]
    assert relative_error(found, formula(query, key, value, visible)) < TOLERANCES[precision]


@pytest.mark.parametrize("heads", HEADS)
def test_back_ends_have_the_same_gradients(heads):
    gradients = []
    for backend in BACKENDS:
        given = [x.requires_grad_() for x in tensors(heads)]
        output = attend(backend, *given)
        output.backward(torch.linspace(-1, 1, output.numel()).reshape(output.shape))
        gradients.append([x.grad for x in given])
    for ours, theirs in zip(*gradients, strict=True):
        assert relative_error(ours, theirs.double()) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("changed", [slice(0, 4), slice(4, 5), slice(5, 9)])
def test_a_segment_is_blind_to_the_others_bit_for_bit(backend, changed):
    """Beyond the block sizes of the fused kernel too: each token stands for 100."""
    ids = IDS.repeat_interleave(100, dim=1)
    here = torch.zeros(9, dtype=torch.bool)
    here[changed] = True
    here = here.repeat_interleave(100)
    query, key, value = tensors((4, 2), queries=900, keys=900)
    before = attend(backend, query, key, value, ids)
    for x in (query, key, value):
        x[0, :, here] = 9.0
    after = attend(backend, query, key, value, ids)
    assert torch.equal(before[0, :, ~here], after[0, :, ~here])
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[0, :, here], after[0, :, here])


def plain_kernel(query, key, value, starts_q, starts_k, most_q, most_k, **options):
    """What the kernel of torch promises, a loop over [tokens, heads, d]."""
    assert options == {"window_size": (-1, 0), "enable_gqa": query.shape[1] != key.shape[1]}
    assert torch.equal(starts_q, starts_k) and most_q == most_k == starts_q.diff().max()
    parts = []
    for start, end in zip(starts_q, starts_q[1:], strict=False):
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        gqa = options["enable_gqa"]
        parts.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa))
    return torch.cat(parts, dim=1).transpose(0, 1)


@pytest.mark.parametrize("heads", HEADS)
def test_rows_are_laid_end_to_end_for_the_kernel(heads):
    given = tensors(heads)
    found = variable_length_attention(*given, segments=Segments(IDS), kernel=plain_kernel)
    expected = segmented_attention(*given, segments=Segments(IDS), dropout=0.0)
    assert found.shape == expected.shape
    assert relative_error(found, expected.double()) < 1e-5


def test_torch_has_the_kernel_as_it_is_called():
    assert variable_length_kernel() is not None


FITS = {"dtype": torch.bfloat16, "width": 64, "dropout": 0.0, "capability": (9, 0)}
DENSE = {
    "fp32": ({"dtype": torch.float32}, "does not compute in fp32: set --training.precision bf16"),
    "dropout": ({"dropout": 0.1}, "model.attention_dropout is 0.1: set it to 0"),
    "width": ({"width": 12}, "heads of whole 8s up to 256, not of 12"),
    "capability": ({"capability": (7, 5)}, "needs compute capability 8.0, and this GPU has 7.5"),
    "torch": ({"kernel": None}, f"torch {torch.__version__} has no variable-length kernel"),
}


@pytest.mark.parametrize("name", [None, *DENSE])
def test_a_dense_mask_on_cuda_is_never_taken_in_silence(monkeypatch, capsys, name):
    """A fake GPU: which path is taken, and what is said about it once."""
    changes, reason = DENSE[name] if name else ({}, "")
    case = FITS | {"kernel": plain_kernel} | changes
    monkeypatch.setattr(segments_module, "variable_length_kernel", lambda: case["kernel"])
    monkeypatch.setattr(segments_module, "capability", lambda device: case["capability"])
    segments_module._warn_about_mask.cache_clear()
    taken = []
    monkeypatch.setattr(segments_module, "sdpa", lambda q, k, v, mask, dropout: taken.append(mask))
    monkeypatch.setattr(
        segments_module, "variable_length_attention", lambda *_, **__: taken.append("varlen")
    )
    with FakeTensorMode():
        query = torch.empty(2, 4, 4096, case["width"], dtype=case["dtype"], device="cuda")
        segments = Segments(torch.zeros(2, 4096, dtype=torch.int32))
        for _ in range(2):
            segmented_attention(query, query, query, segments=segments, dropout=case["dropout"])
        assert reason in why_dense(query, case["dropout"])
    said = capsys.readouterr().err
    if name is None:
        assert (taken, said) == (["varlen"] * 2, "")
        return
    assert [mask.shape for mask in taken] == [(2, 1, 4096, 4096)] * 2
    assert said.count("warning: packed samples are attended to through a dense mask of 32 MiB") == 1
    assert reason in said


@pytest.mark.gpu
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
def test_it_is_the_formula_on_cuda(heads, precision):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device, or no option --gpu")
    given = tensors(heads, dtype=DTYPES[precision])
    found = attend("sdpa", *(x.cuda() for x in given), IDS.cuda()).cpu()
    assert relative_error(found, formula(*given, visible)) < TOLERANCES[precision]
