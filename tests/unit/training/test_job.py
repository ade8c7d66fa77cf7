"""How batches reach the device, and what a deterministic job requires of it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megatron_chimed.engine import device
from megatron_chimed.errors import ConfigError
from megatron_chimed.training import job as job_module
from megatron_chimed.training.job import Job
from tests.unit.training import run


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_batches_go_to_a_gpu_from_pinned_memory_without_waiting(monkeypatch, kind):
    """That the copy overlaps with work of the device, only a GPU shows."""
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: calls.append("pin") or x)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda x, where, **how: calls.append((where.type, how)) or x
    )
    job = SimpleNamespace(ranks=SimpleNamespace(device=torch.device(kind)))
    batch = Job._to_device(job, {"tokens": np.arange(6), "labels": np.arange(6)})
    assert batch["tokens"].tolist() == [0, 1, 2, 3, 4, 5]
    pins = ["pin", "pin"] if kind == "cuda" else []
    assert calls == [*pins, *[(kind, {"non_blocking": True})] * 2]


def test_a_deterministic_job_requires_the_workspace(tmp_path, monkeypatch):
    def refuse(where):
        raise ConfigError(f"no workspace on {where.type}")

    monkeypatch.setattr(job_module, "require_workspace", refuse)
    with run.job(tmp_path / "plain"):
        pass
    with pytest.raises(ConfigError, match="no workspace on cpu"):
        with run.job(tmp_path / "exact", training={"deterministic": True}):
            pass


def test_the_workspace_matters_on_a_gpu_only(monkeypatch):
    monkeypatch.setenv(device.WORKSPACE, "wrong")
    device.require_workspace(torch.device("cpu"))
    with pytest.raises(ConfigError, match="it is 'wrong'"):
        device.require_workspace(torch.device("cuda"))
