"""What a run says at its start, on the CPU and on GPUs whose kernels are there or not."""

import json
import platform
import socket
from types import SimpleNamespace

import pytest
import torch

from megatron_chimed.engine import versions
from megatron_chimed.kernels import describe, native
from megatron_chimed.training.start_report import start_lines
from tests.unit.training import run

CUDA = torch.device("cuda", 0)


@pytest.fixture
def h200(monkeypatch):
    """torch reports an H200; returns its properties."""
    properties = SimpleNamespace(name="NVIDIA H200", total_memory=150_000_000_000, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: properties.name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 5))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(versions, "nvidia_driver", lambda: "580.65.06")
    return properties


def test_a_run_records_its_environment_once_and_says_it(tmp_path, capsys):
    run.train(tmp_path, training={"train_steps": 1})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    (record,) = (e for e in map(json.loads, lines) if e["kind"] == "environment")
    assert (record["device"], record["collectives"], record["step"]) == ("cpu", "gloo", 0)
    assert record["torch"] == torch.__version__ and record["megatron_core"] == "0.16.1"
    assert record["op.rms_norm"].startswith("fused CPU")
    assert record["attention"] == "in blocks or sdpa"
    assert record["node.0"].startswith(f"{socket.gethostname()}, rank 0: ")
    assert f"python {record['python']}" in record["node.0"] and "node.1" not in record
    said = capsys.readouterr().out
    assert "GiB, collectives by gloo; torch 2." in said and "megatron-core 0.16.1" in said
    assert "; attention: in blocks or sdpa" in said
    assert "warning" not in said


def test_a_gpu_is_recorded_with_its_libraries(h200):
    assert versions.environment(CUDA) == {
        "device": "cuda",
        "device_name": "NVIDIA H200",
        "device_memory_gib": 139.7,
        "compute_capability": "9.0",
        "collectives": "nccl",
        "nccl": "2.27.5",
        "cuda": "13.0",
        "driver": "580.65.06",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "megatron_core": "0.16.1",
        "megatron_chimed": versions.megatron_chimed.__version__,
    }


@pytest.mark.parametrize("built", [True, False])
def test_kernels_that_were_not_built_for_the_gpu_are_a_warning_with_the_command(
    h200, monkeypatch, built
):
    reason = "" if built else f"_kernels.so was built without CUDA: {native.BUILD_HINT}"
    monkeypatch.setattr(native, "why_not_fused", lambda op, device: reason)
    paths = versions.op_paths(CUDA, "auto")
    assert paths == [path for path in describe() if path.device == "cuda"]
    first, ops, *warnings = start_lines(
        versions.environment(CUDA) | {"attention": "sdpa: CUDNN"}, paths
    )
    assert first.startswith("device: NVIDIA H200, 139.7 GiB, collectives by nccl; torch 2.")
    assert "cuda 13.0, driver 580.65.06, nccl 2.27.5" in first
    assert ops.endswith("attention: sdpa: CUDNN")
    if built:
        assert "fused CUDA: rms_norm, add_rms_norm" in ops and not warnings
        return
    (warning,) = warnings  # where Triton is installed, it computes some of the ops
    assert warning.startswith("warning: the kernels were not built for CUDA, so ")
    assert "run `BUILD_CUDA=1 make -B install`" in warning and "rms_norm" in warning


def test_a_library_that_does_not_load_is_a_warning_on_a_gpu(h200, monkeypatch):
    reason = "_kernels.so does not load: undefined symbol: aoti_torch"
    monkeypatch.setattr(native, "why_not_fused", lambda op, device: reason)
    record = versions.environment(CUDA) | {"attention": "sdpa: CUDNN"}
    (warning,) = start_lines(record, versions.op_paths(CUDA, "auto"))[2:]
    assert warning.startswith(f"warning: the kernels cannot be used ({reason}")
    assert "Build them again: `make -B install`" in warning


def test_torch_for_amd_gpus_is_recorded_as_such(h200, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert versions.environment(CUDA)["cuda"] == "ROCm 6.4"
