"""Loading the kernels, choosing a path, saying why; and the ops in torch's fake world."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from megatron_chimed.config.kernels import KernelConfig
from megatron_chimed.errors import ConfigError, KernelError
from megatron_chimed.kernels import (
    VocabShard,
    add_rms_norm,
    describe,
    l2_norm,
    native,
    rms_norm,
    rope,
    scaled_masked_softmax,
    swiglu,
    vocab_parallel_cross_entropy,
)
from megatron_chimed.kernels.binding import OPS
from megatron_chimed.kernels.native import ComposedOp, FusedOp
from megatron_chimed.kernels.rms_norm import RMS_NORM
from megatron_chimed.kernels.schemas import define

ROOT = Path(__file__).resolve().parents[3]


NOT_INTERPRETED = SimpleNamespace(INTERPRETED=False)
GPU_TENSOR: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16)
FUSED = [op for op in OPS if isinstance(op, FusedOp)]


def test_every_op_is_fused_on_cpu():
    paths = {p.op: p for p in describe() if p.device == "cpu"}
    for op in OPS:
        if isinstance(op, ComposedOp):
            assert paths.pop(op.name).reason
    assert set(paths) == {op.name for op in FUSED}
    assert all(p.path.startswith("fused CPU ") for p in paths.values()), paths
    assert all(p.reason for p in paths.values())


def test_every_fused_op_has_a_schema_a_fake_and_the_kernels_that_it_claims():
    assert not native.load_library()
    cuda_is_built = has_kernel("rms_norm_backward", "CUDA")
    for op in FUSED:
        assert hasattr(torch.ops.chimed, op.kernel), f"{op.name} defines no {op.kernel}"
    for name in defined_ops():
        assert has_kernel(name, "Meta"), f"{name} has no fake"
        assert has_kernel(name, "CPU"), f"{name} has no CPU kernel"
    if cuda_is_built:
        for op in FUSED:
            assert has_kernel(op.kernel, "CUDA") is not bool(op.why_cpu_only), op.name


def test_every_op_that_the_library_implements_is_defined_by_a_module():
    """A kernel whose schema is missing would be registered and never found."""
    assert not native.load_library()
    registered = {
        name.removeprefix("chimed::")
        for name in torch._C._dispatch_get_registrations_for_dispatch_key("CPU")
        if name.startswith("chimed::")
    }
    assert registered - {"cpu_level"} == defined_ops()


@pytest.mark.parametrize(
    ("sources", "marker", "binding"),
    [
        ("cpu/*.h", "CHIMED_CPU_KERNELS(", "cpu/ops.h"),
        ("cuda/*.cu", "STABLE_TORCH_LIBRARY_IMPL(", "bind/cuda_ops.cpp"),
    ],
)
def test_every_source_of_an_op_is_included_by_its_binding(sources, marker, binding):
    csrc = ROOT / "csrc"
    included = re.findall(r'#include "(?:\.\./cuda/)?(.+)"', (csrc / binding).read_text("utf-8"))
    found = [p.name for p in sorted(csrc.glob(sources)) if marker in p.read_text("utf-8")]
    assert included == [name for name in found if name != "op.h"]


def test_an_op_whose_module_is_imported_again_stays_as_it_is():
    define("swiglu_forward(Tensor gate_up) -> Tensor", pytest.fail)
    with FakeTensorMode():
        assert torch.ops.chimed.swiglu_forward(torch.ones(2, 6)).shape == (2, 3)


@pytest.mark.slow
def test_schemas_need_no_library():
    """An op is known after the import alone, so that a graph can hold it where nothing is built."""
    code = (
        "import torch, megatron_chimed.kernels as kernels; "
        "from torch._subclasses.fake_tensor import FakeTensorMode\n"
        "with FakeTensorMode(): y = torch.ops.chimed.swiglu_forward(torch.ones(2, 6))\n"
        "print(tuple(y.shape), hasattr(torch.ops.chimed, 'cpu_level'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120,
        check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["(2,", "3)", "False"]


def defined_ops() -> set[str]:
    """The names that the modules of the ops define."""
    prefix = "chimed::"
    return {name.removeprefix(prefix) for name in torch.library._defs if name.startswith(prefix)}


def has_kernel(name: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"chimed::{name}", key)


def test_the_report_says_that_the_config_wants_references():
    assert {(p.path, p.reason) for p in describe("reference") if p.device == "cpu"} == {
        ("reference", "kernels.backend is reference")
    }


@pytest.mark.parametrize("capability", [(7, 0), (7, 5), (8, 0), (9, 0)])
def test_a_gpu_older_than_the_kernels_runs_the_references(monkeypatch, capability):
    """A launch would fail with "no kernel image is available"."""
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    native._reason.cache_clear()
    try:
        found = native.why_not_fused(FUSED[0], "cuda")
    finally:
        native._reason.cache_clear()
    too_old = "the kernels are built for compute capability 8.0 and later, this GPU has 7."
    assert found.startswith(too_old) if capability < (8, 0) else found == ""


def test_on_amd_gpus_triton_computes_and_no_kernel_of_nvidia(monkeypatch):
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: True)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(native.importlib, "import_module", lambda name: NOT_INTERPRETED)
    native._reason.cache_clear()
    native._triton_reason.cache_clear()
    try:
        assert native.why_not_fused(RMS_NORM, "cuda").startswith(
            "the kernels are compiled for NVIDI"
        )
        assert native.why_not_fused(RMS_NORM, "cpu") == ""
        assert native.why_not_triton(RMS_NORM, "cuda") == ""
        assert native.implementation(RMS_NORM, "auto", GPU_TENSOR) is torch.ops.chimed_triton
    finally:
        native._reason.cache_clear()
        native._triton_reason.cache_clear()


def test_a_library_without_cuda_says_how_to_build_it(monkeypatch):
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: False)
    native._reason.cache_clear()
    try:
        found = native.why_not_fused(FUSED[0], "cuda")
    finally:
        native._reason.cache_clear()
    assert found == (
        "_kernels.so was built without CUDA: install nvcc (the CUDA toolkit) and run "
        "`BUILD_CUDA=1 make -B install`"
    )


def test_without_a_library_auto_falls_back_and_fused_refuses(monkeypatch):
    reason = "_kernels.so is not built: run `make install`"
    monkeypatch.setattr(native, "why_not_fused", lambda *_: reason)
    x, weight = torch.randn(2, 8), torch.ones(8)
    expected = rms_norm(x, weight, backend="reference")
    assert torch.equal(rms_norm(x, weight), expected)
    with pytest.raises(KernelError, match="rms_norm: backend is 'fused', but _kernels.so is not"):
        rms_norm(x, weight, backend="fused")
    fused = {op.name for op in FUSED}
    found = {(p.path, p.reason) for p in describe() if p.device == "cpu" and p.op in fused}
    assert found == {("reference", reason)}


def test_double_takes_the_reference_and_fused_refuses_it():
    x, weight = torch.randn(2, 8).double(), torch.ones(8).double()
    assert rms_norm(x, weight).dtype == torch.float64
    with pytest.raises(KernelError, match="float32, float16 and bfloat16, not torch.float64"):
        rms_norm(x, weight, backend="fused")


def test_the_config_binds_the_backend(monkeypatch):
    with pytest.raises(ConfigError, match="kernels.backend is 'quick': it must be one of au"):
        KernelConfig(backend="quick")
    chosen = []
    # Through sys.modules: as an attribute of the package, `swiglu` is the function.
    module = sys.modules["megatron_chimed.kernels.swiglu"]
    monkeypatch.setattr(module, "implementation", lambda op, backend, x: chosen.append(backend))
    KernelConfig(backend="reference").ops().swiglu(torch.ones(2, 4))
    assert chosen == ["reference"]


def test_a_level_that_the_processor_lacks_changes_nothing():
    level = native.set_cpu_level(-1)
    assert native.set_cpu_level(99) == level


def test_direct_callers_of_the_ops_get_an_error_and_no_crash():
    ops = torch.ops.chimed
    native.load_library()
    x = torch.ones(4, 8)
    for call in (
        lambda: ops.rms_norm_forward(x, torch.ones(7), 1e-6),
        lambda: ops.rms_norm_forward(x.t(), torch.ones(4), 1e-6),
        lambda: ops.rms_norm_forward(x.long(), torch.ones(8).long(), 1e-6),
        lambda: ops.swiglu_backward(x, x),
        lambda: ops.rope(x, x, x, x, False),
        lambda: ops.cross_entropy_stats(x, torch.zeros(3).long(), 0, 8),
        lambda: ops.scaled_masked_softmax_forward(x, None, 1.0, False),
    ):
        with pytest.raises(RuntimeError, match="chimed: "):
            call()


def run_all(device):
    """Every differentiable op, forward and backward; shapes and dtypes of what comes out."""
    x = torch.randn(4, 6, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.ones(6, device=device, dtype=torch.bfloat16, requires_grad=True)
    heads = torch.randn(4, 2, 6, device=device, dtype=torch.bfloat16, requires_grad=True)
    angles = torch.randn(4, 3, device=device)
    target = torch.zeros(4, dtype=torch.int64, device=device)
    outputs = [
        rms_norm(x, weight, backend="fused"),
        *add_rms_norm(x, x, weight, backend="fused"),
        swiglu(x, backend="fused"),
        *rope(heads, heads, cos=angles, sin=angles, backend="fused"),
        scaled_masked_softmax(heads.unsqueeze(0), scale=1.0, backend="fused"),
    ]
    logits = x * 1
    loss = vocab_parallel_cross_entropy(logits, target, shard=VocabShard(size=5), backend="fused")
    total = sum(y.float().sum() for y in [*outputs, loss])
    gradients = torch.autograd.grad(total, (x, weight, heads))
    norm = l2_norm(list(gradients), backend="fused")
    return [(tuple(y.shape), y.dtype) for y in [*outputs, loss, *gradients, norm]]


def test_the_fake_world_gives_the_real_shapes():
    real = run_all("cpu")
    with FakeTensorMode():
        assert run_all("cpu") == real
    assert run_all("meta") == real


def test_torch_compile_takes_the_ops_into_its_graph():
    def loss(x, weight):
        normed = rms_norm(x, weight, backend="fused")
        logits, summed = add_rms_norm(normed, x, weight, backend="fused")
        losses = vocab_parallel_cross_entropy(
            swiglu(logits, backend="fused"), target, shard=VocabShard(size=4), backend="fused"
        )
        return losses.sum() + summed.sum()

    target = torch.tensor([0, 3, 1, 2])
    inputs = [torch.randn(4, 8, requires_grad=True), torch.ones(8, requires_grad=True)]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(*inputs), inputs)
    for value, truth in zip(torch.autograd.grad(compiled(*inputs), inputs), expected, strict=True):
        assert torch.allclose(value, truth, atol=1e-6)


def test_the_schemas_and_fakes_pass_torchs_own_check():
    x, weight = torch.randn(4, 6), torch.ones(6)
    angles = torch.randn(4, 3)
    target = torch.zeros(4, dtype=torch.int64)
    heads = torch.randn(4, 2, 6)
    native.load_library()
    ops = torch.ops.chimed
    calls = [
        (ops.rms_norm_forward, (x, weight, 1e-6)),
        (ops.rms_norm_backward, (x, x, weight, torch.ones(4))),
        (ops.add_rms_norm_forward, (x, x, weight, 1e-6)),
        (ops.add_rms_norm_backward, (x, x, x, weight, torch.ones(4))),
        (ops.swiglu_forward, (x,)),
        (ops.swiglu_backward, (torch.ones(4, 3), x)),
        (ops.rope, (heads, heads, angles, angles, True)),
        (ops.cross_entropy_stats, (x, target, 0, 5)),
        (ops.cross_entropy_backward_, (x, target, torch.ones(4), torch.ones(4), 0, 5, 0.0)),
        (ops.scaled_masked_softmax_forward, (heads.unsqueeze(0), None, 1.0, True)),
        (ops.scaled_masked_softmax_backward, (heads, heads, 1.0)),
        (ops.adamw_, ([x], [x.clone()], [x * 0], [x * 0], [], 0.1, 0.9, 0.9, 1e-8, 0.0, 1, 1.0)),
        (ops.l2_norm, ([x],)),
    ]
    for op, arguments in calls:
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))
