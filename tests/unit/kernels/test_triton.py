"""Choosing Triton, and its kernels: right through the interpreter, and compiled without a GPU."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels import bind, describe, native, rms_norm, swiglu
from megatron_chimed.kernels.adamw import ADAMW
from megatron_chimed.kernels.binding import OPS
from megatron_chimed.kernels.native import FusedOp, implementation
from megatron_chimed.kernels.swiglu import SWIGLU

ROOT = Path(__file__).resolve().parents[3]
CASES = Path(__file__).with_name("interpreted_triton.py")
WITH_TRITON = [op for op in OPS if isinstance(op, FusedOp) and op.triton]
COMPILED, TRITON = torch.ops.chimed, torch.ops.chimed_triton


@pytest.fixture
def triton():
    return pytest.importorskip("triton", reason="Triton is not installed: pip install triton")


@pytest.mark.slow
def test_the_kernels_compute_what_the_references_do(triton):
    """In a process of its own: the interpreter is chosen when Triton is first imported."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", CASES],
        cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert " skipped" not in done.stdout


def signatures(half: str) -> list[tuple[str, str, dict[str, str], dict[str, object]]]:
    """(module, kernel, types of arguments, constants) as a run in `half` launches them."""
    row = {"BLOCK": 8192}
    norm = dict.fromkeys(("x_ptr", "weight_ptr"), half)
    sizes = {"rows": "i32", "width": "i32"}
    columns = {"width": "i32", "live": "i32", "vocab_start": "i32"}
    ce = {"logits_ptr": half, "target_ptr": "*i64"}
    strides = ("q_token_stride", "q_head_stride", "k_token_stride", "k_head_stride")
    return [
        *(
            entry
            for adds in (False, True)
            for entry in (
                (
                    "rms_norm",
                    "forward_kernel",
                    norm
                    | dict.fromkeys(("residual_ptr", "y_ptr", "summed_ptr"), half)
                    | {"rstd_ptr": "*fp32", "width": "i32", "eps": "fp32"},
                    row | {"ADDS": adds},
                ),
                (
                    "rms_norm",
                    "backward_kernel",
                    norm
                    | dict.fromkeys(("dy_ptr", "dsummed_ptr", "dx_ptr"), half)
                    | {"rstd_ptr": "*fp32", "partials_ptr": "*fp32", **sizes},
                    row | {"ADDS": adds},
                ),
            )
        ),
        ("swiglu", "forward_kernel", {"gate_up_ptr": half, "y_ptr": half, "width": "i32"},
         {"BLOCK": 1024}),
        ("swiglu", "backward_kernel",
         {"dy_ptr": half, "gate_up_ptr": half, "dgate_up_ptr": half, "width": "i32"},
         {"BLOCK": 1024}),
        ("rope", "rope_kernel",
         dict.fromkeys(("q_ptr", "k_ptr", "q_out_ptr", "k_out_ptr"), half)
         | dict.fromkeys(("cos_ptr", "sin_ptr"), "*fp32")
         | dict.fromkeys((*strides, "q_heads", "k_heads", "half"), "i32"),
         {"INVERSE": True, "HEADS": 16, "BLOCK": 64}),
        ("cross_entropy", "stats_kernel",
         ce | dict.fromkeys(("max_ptr", "sum_ptr", "target_logit_ptr"), "*fp32") | columns,
         {"BLOCK": 4096}),
        ("cross_entropy", "backward_kernel",
         ce | {"log_sum_exp_ptr": "*fp32", "grad_ptr": "*fp32", "z_loss": "fp32"} | columns,
         {"BLOCK": 4096}),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles_without_a_gpu(triton, capability, tmp_path, monkeypatch):
    compiler = importlib.import_module("triton.backends.compiler")
    ast_source = importlib.import_module("triton.compiler").ASTSource
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    target = compiler.GPUTarget("cuda", capability, 32)
    compiled = set()
    for module, name, types, constants in signatures("*bf16"):
        path = f"megatron_chimed.kernels.triton_ops.{module}"
        kernel = getattr(importlib.import_module(path), name)
        if type(kernel).__name__ == "InterpretedFunction":
            pytest.skip("TRITON_INTERPRET=1: nothing is compiled")
        given = types | dict.fromkeys(constants, "constexpr")
        source = ast_source(kernel, {n: given[n] for n in kernel.arg_names}, constants)
        binary = triton.compile(source, target=target, options={"num_warps": 8})
        assert b"ELF" in binary.asm["cubin"][:4]
        compiled.add((module, name))
    assert {module for module, _ in compiled} == {op.triton for op in WITH_TRITON}


def test_every_triton_op_has_a_schema_and_a_fake_of_its_own():
    for op in WITH_TRITON:
        for namespace in ("chimed", "chimed_triton"):
            name = f"{namespace}::{op.kernel}"
            assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "Meta"), name


NOT_BUILT, NO_TRITON = "_kernels.so was built without CUDA", "Triton does not load"


@pytest.mark.parametrize(
    ("backend", "op", "not_fused", "no_triton", "expected"),
    [
        ("auto", SWIGLU, "", "", COMPILED),
        ("auto", SWIGLU, NOT_BUILT, "", TRITON),
        ("auto", SWIGLU, NOT_BUILT, NO_TRITON, None),
        ("fused", SWIGLU, "", "", COMPILED),
        ("fused", SWIGLU, NOT_BUILT, "", "backend is 'fused', but _kernels.so was built without"),
        ("cuda", SWIGLU, "", "", COMPILED),
        ("cuda", SWIGLU, NOT_BUILT, "", "backend is 'cuda', but _kernels.so was built without"),
        ("triton", SWIGLU, "", "", TRITON),
        ("triton", SWIGLU, "", NO_TRITON, "backend is 'triton', but Triton does not load"),
        ("triton", ADAMW, "", NO_TRITON, COMPILED),
        ("triton", ADAMW, NOT_BUILT, NO_TRITON, None),
        ("reference", SWIGLU, "", "", None),
    ],
)
def test_what_a_cuda_device_runs(monkeypatch, backend, op, not_fused, no_triton, expected):
    monkeypatch.setattr(native, "why_not_fused", lambda *_: not_fused)
    monkeypatch.setattr(
        native, "why_not_triton", lambda op, *_: no_triton if op.triton else "it has none"
    )
    with FakeTensorMode():
        x = torch.empty(2, 4, device="cuda")
    if isinstance(expected, str):
        with pytest.raises(KernelError, match=expected):
            implementation(op, backend, x)
    else:
        assert implementation(op, backend, x) is expected


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("cuda", "rms_norm: backend is 'cuda', but the tensors are on cpu"),
        ("triton", "rms_norm: backend is 'triton', but Triton "),
    ],
)
def test_a_backend_for_gpus_is_refused_on_cpu_at_the_start_and_in_an_op(backend, message):
    x, weight = torch.ones(2, 4), torch.ones(4)
    with pytest.raises(KernelError, match=message):
        bind(backend, device=torch.device("cpu"))
    with pytest.raises(KernelError, match=message):
        rms_norm(x, weight, backend=backend)
    refused = {p.op for p in describe(backend) if p.device == "cpu" and p.path == "refused"}
    assert refused >= {op.name for op in WITH_TRITON}


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_run_on_gpus_is_planned_on_cpu(backend):
    with FakeTensorMode():
        x = torch.ones(2, 6, requires_grad=True)
        y = bind(backend, device=torch.device("cpu")).swiglu(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
    assert (y.shape, gradient.shape) == ((2, 3), (2, 6))


def test_auto_never_interprets_on_cpu():
    assert implementation(SWIGLU, "auto", torch.ones(2, 4)) is COMPILED
    assert swiglu(torch.ones(2, 4).double()).dtype == torch.float64


def test_the_report_names_triton_where_it_runs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        native, "why_not_fused", lambda op, device: NOT_BUILT if device == "cuda" else ""
    )
    monkeypatch.setattr(native, "why_not_triton", lambda op, device: "")
    paths = {p.op: (p.path, p.reason) for p in describe() if p.device == "cuda"}
    assert paths["swiglu"] == ("Triton", NOT_BUILT)
    assert paths["adamw"] == ("reference", NOT_BUILT)
    monkeypatch.setattr(native, "why_not_triton", lambda op, device: NO_TRITON)
    paths = {p.op: (p.path, p.reason) for p in describe() if p.device == "cuda"}
    assert paths["swiglu"] == ("reference", f"{NOT_BUILT}; {NO_TRITON}")
