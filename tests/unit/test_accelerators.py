"""Accelerators are found by what their drivers leave on the host, without torch."""

import pytest

from megatron_chimed import accelerators
from megatron_chimed.accelerators import find_accelerators, nvidia_driver

VERSION = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.124.06  Thu Feb 27 21:06:43 UTC 2025\n"
    "GCC version:  gcc version 12.3.0\n"
)
OPEN_VERSION = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"


@pytest.fixture(autouse=True)
def no_nvidia_smi(monkeypatch):
    monkeypatch.setattr(accelerators.shutil, "which", lambda name: None)


@pytest.mark.parametrize(
    ("path", "vendor"),
    [
        ("dev/nvidia0", "NVIDIA"),
        ("proc/driver/nvidia/gpus/0000:3b:00.0/information", "NVIDIA"),
        ("dev/kfd", "AMD"),
        ("dev/davinci3", "Ascend"),
    ],
)
def test_each_vendor_is_known_by_its_files(tmp_path, path, vendor):
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).touch()
    (found,) = find_accelerators(tmp_path)
    assert found.vendor == vendor
    assert found.evidence.startswith(str(tmp_path)) and "/".join(path.split("/")[:2]) in str(
        found.evidence
    )


def test_what_is_no_accelerator_is_not_one(tmp_path):
    (tmp_path / "dev").mkdir()
    for name in ("nvidiactl", "nvidia-uvm", "dri"):
        (tmp_path / "dev" / name).touch()
    assert find_accelerators(tmp_path) == []


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 'GPU 0: NVIDIA H200 (UUID: GPU-1)'", True),
        ("echo 'NVIDIA-SMI has failed'; exit 9", False),
    ],
)
def test_nvidia_smi_is_asked_where_there_are_no_files(tmp_path, monkeypatch, script, found):
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setattr(accelerators.shutil, "which", lambda name: str(command))
    shown = [each.evidence for each in find_accelerators(tmp_path)]
    assert shown == (["nvidia-smi: GPU 0: NVIDIA H200 (UUID: GPU-1)"] if found else [])


@pytest.mark.parametrize(
    ("text", "version"), [(VERSION, "570.124.06"), (OPEN_VERSION, "580.65.06"), (None, "")]
)
def test_the_version_of_the_driver(tmp_path, text, version):
    if text is not None:
        (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
        (tmp_path / "proc/driver/nvidia/version").write_text(text)
    assert nvidia_driver(tmp_path) == version
