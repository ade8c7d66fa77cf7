"""The decision between GPU and CPU, on machines that are told by patching what torch reports."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from megatron_chimed import accelerators, engine
from megatron_chimed.accelerators import Accelerators
from megatron_chimed.engine import cpu, device
from megatron_chimed.errors import ConfigError

NVIDIA = Accelerators(vendor="NVIDIA", evidence="/dev/nvidia0")
AMD = Accelerators(vendor="AMD", evidence="/dev/kfd")
ASCEND = Accelerators(vendor="Ascend", evidence="/dev/davinci0")
TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU "
    "driver by downloading and installing a new version from the URL: http://www.nvidia.com/"
)
NONE_VISIBLE = "No CUDA GPUs are available"


@pytest.fixture
def machine(monkeypatch):
    """A machine with 8 H200s that torch can use; its attributes may be changed."""
    told = SimpleNamespace(
        cuda="13.0", hip=None, npu=False, usable=True, gpus=8, capability=(9, 0), error=None,
        arch=["sm_75", "sm_80", "sm_90", "sm_120"], shown=[NVIDIA], started=False, driver="570.1",
    )  # fmt: skip

    def start():
        if told.error:
            raise RuntimeError(told.error)

    find_spec = accelerators.importlib.util.find_spec
    monkeypatch.setattr(torch, "version", told)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: told.usable)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: told.started)
    monkeypatch.setattr(torch.cuda, "init", start)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: told.gpus)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: told.capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: told.arch)
    monkeypatch.setattr(device, "find_accelerators", lambda: told.shown)
    monkeypatch.setattr(accelerators, "nvidia_driver", lambda: told.driver)
    monkeypatch.setattr(
        accelerators.importlib.util,
        "find_spec",
        lambda name: told if name == "torch_npu" and told.npu else find_spec(name),
    )
    for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_WORLD_SIZE", device.WORKSPACE):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    return told


def tell(machine, **changes):
    vars(machine).update(changes)


UNUSABLE = {"usable": False, "gpus": 0}
REFUSALS = {
    "driver": (UNUSABLE | {"error": TOO_OLD}, {}, r"driver is 570\.1: The NVIDIA driver on your "
               r"system is too old \(found version 11040\)\. Update the driver, or install a"),
    "none visible": (UNUSABLE | {"error": NONE_VISIBLE, "driver": ""}, {},
                     "no NVIDIA driver is loaded: No CUDA GPUs are available"),
    "hidden": (UNUSABLE | {"error": NONE_VISIBLE}, {"CUDA_VISIBLE_DEVICES": ""},
               "CUDA_VISIBLE_DEVICES is '', which hides all: unset it"),
    "wrong number": (UNUSABLE | {"error": NONE_VISIBLE}, {"CUDA_VISIBLE_DEVICES": "9"},
                     "CUDA_VISIBLE_DEVICES is '9': No CUDA GPUs are available"),
    "CPU build": (UNUSABLE | {"cuda": None}, {}, r"torch 2\.13\.0\+cu130 is a build without CUDA: "
                  "install one with CUDA"),
    "old GPU": ({"capability": (7, 0)}, {}, r"GPU 0 \(NVIDIA GPU\) has compute capability 7\.0, "
                r"and torch 2\.13\.0\+cu130 is compiled for 7\.5, 8\.0, .* an older CUDA"),
    "new GPU": ({"capability": (10, 0)}, {}, r"capability 10\.0, .* install a torch for a newer"),
    "ROCm": ({"hip": "6.4", "cuda": None}, {}, r"built for AMD GPUs \(ROCm 6\.4\); supported are "
             r"NVIDIA GPUs of compute capability 8\.0"),
    "Ascend": (UNUSABLE | {"npu": True, "cuda": None}, {}, "torch_npu is installed, which is for"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_cuda_is_refused_with_the_reason(machine, monkeypatch, name):
    changes, variables, message = REFUSALS[name]
    tell(machine, **changes)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"^device is cuda, but .*{message}") as caught:
        engine.use_device("cuda")
    assert str(caught.value).endswith("Or set `device: cpu` if this run is meant for the CPU.")


@pytest.mark.parametrize("wish", ["auto", "cuda"])
def test_a_gpu_is_taken_where_torch_can_use_one(machine, capsys, wish):
    engine.use_device(wish, num_parameters=10**11)
    assert engine.uses_cuda() and accelerators.why_no_cuda() == ""
    assert device.local_device(3) == torch.device("cuda", 3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("capability", "arch"),
    [((8, 6), ["sm_80"]), ((12, 0), ["sm_90", "compute_90"]), ((9, 0), []), ((9, 0), ["sm_90a"])],
)
def test_a_gpu_runs_code_of_its_generation_and_older_sources(machine, capability, arch):
    tell(machine, capability=capability, arch=arch)
    assert accelerators.why_no_cuda() == ""


@pytest.mark.parametrize("wish", ["auto", "cuda"])
def test_each_rank_needs_a_gpu_of_its_own(machine, monkeypatch, wish):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    with pytest.raises(ConfigError, match="^16 ranks run on this host, which shows 8 GPUs, and ea"):
        engine.use_device(wish, local_rank=1)
    tell(machine, gpus=1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    with pytest.raises(ConfigError, match=r"shows 1 GPU \(CUDA_VISIBLE_DEVICES is '2'\)"):
        engine.use_device(wish, local_rank=2)
    engine.use_device(wish, local_rank=0)


@pytest.mark.parametrize("shown", [NVIDIA, AMD])
def test_gpus_that_stay_idle_are_a_warning_and_for_a_large_model_an_error(machine, capsys, shown):
    tell(machine, **UNUSABLE, error=TOO_OLD, shown=[shown])
    engine.use_device("auto", num_parameters=10**8)
    said = capsys.readouterr().err
    assert said.startswith(f"warning: this machine has GPUs, {shown.vendor} ({shown.evidence}), ")
    assert ("is too old" in said) is (shown is NVIDIA)
    assert ("supported are NVIDIA GPUs" in said) is (shown is AMD)
    with pytest.raises(ConfigError, match=r"a model of 13\.0B parameters .* Set `device: cpu` if"):
        engine.use_device("auto", num_parameters=13 * 10**9)
    engine.use_device("cpu", num_parameters=13 * 10**9)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"hip": "6.4", "cuda": None, "shown": [AMD]},  # torch calls its GPUs cuda
        {**UNUSABLE, "npu": True, "shown": []},
        {**UNUSABLE, "cuda": None, "shown": [ASCEND]},
    ],
)
def test_other_accelerators_are_refused_and_not_trained_on_cpu_in_silence(machine, changes):
    tell(machine, **changes)
    with pytest.raises(ConfigError, match="this project does not train: supported are NVIDIA GPUs"):
        engine.use_device("auto", num_parameters=1000)
    engine.use_device("cpu", num_parameters=1000)


ROCM = {"hip": "6.4", "cuda": None, "shown": [AMD]}


@pytest.mark.parametrize("wish", ["auto", "cuda"])
def test_a_refused_amd_gpu_says_what_is_unknown_and_how_to_try_it(machine, wish):
    tell(machine, **ROCM)
    with pytest.raises(ConfigError, match=r"nothing of this project has ever run on an AMD GPU .*"
                       r"To try it all the same, set `device: rocm`\. "):  # fmt: skip
        engine.use_device(wish)


def test_an_amd_gpu_is_used_only_if_asked_for_by_name_and_with_a_warning(machine, capsys):
    tell(machine, **ROCM)
    engine.use_device("rocm", local_rank=3)
    assert engine.uses_cuda() and device.local_device(3) == torch.device("cuda", 3)
    said = capsys.readouterr().err
    assert said.startswith(
        "warning: device is rocm: nothing of this project has ever run on an AMD"
    )
    assert "compare its losses with those of the same run on the CPU" in said


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {}, r"^device is rocm, but torch 2\.13\.0\+cu130 is not built for ROCm\. Set `device"),
        (ROCM | UNUSABLE | {"error": "no HIP device"}, {}, "ROCm 6.4 cannot use a GPU: no HIP dev"),
        (ROCM | {"gpus": 1}, {"local_rank": 1}, "2 ranks run on this host, which shows 1 GPU"),
        (
            ROCM,
            {"deterministic": True},
            "deterministic is only known to hold on NVIDIA GPUs and CP",
        ),
    ],
)
def test_an_amd_gpu_that_cannot_be_used_is_refused(machine, changes, options, message):
    tell(machine, **changes)
    with pytest.raises(ConfigError, match=message):
        engine.use_device("rocm", **options)


def test_a_machine_without_gpus_uses_its_cpu_without_a_word(machine, capsys):
    tell(machine, **UNUSABLE, cuda=None, shown=[])
    engine.use_device("auto", num_parameters=10**11)
    assert device.local_device(3) == torch.device("cpu")
    assert capsys.readouterr().err == ""


def test_deterministic_products_get_their_workspace_before_cuda_starts(machine, monkeypatch):
    engine.use_device("cuda")
    assert device.WORKSPACE not in os.environ
    tell(machine, started=True)
    with pytest.raises(ConfigError, match=r"CUDA was started without it\. Start the command with "
                       r"CUBLAS_WORKSPACE_CONFIG=:4096:8"):  # fmt: skip
        engine.use_device("cuda", deterministic=True)
    tell(machine, started=False)
    engine.use_device("cuda", deterministic=True)
    assert os.environ[device.WORKSPACE] == ":4096:8"
    tell(machine, started=True)  # a second job of the same process
    engine.use_device("cuda", deterministic=True)
    monkeypatch.setenv(device.WORKSPACE, ":4096:2:16:8")
    with pytest.raises(ConfigError, match=r"but it is ':4096:2:16:8'"):
        engine.use_device("cuda", deterministic=True)


CHOOSE_CPU = """
import torch
torch.cuda.is_available = lambda: True  # before the engine is imported: a machine with CUDA
from megatron_chimed import accelerators, engine
assert engine.uses_cuda()
engine.use_device("cpu")
import os
from megatron_chimed.engine import device
assert not torch.cuda.is_available() and not engine.uses_cuda()
assert torch.cuda.current_device() == torch.device("cpu")
print(device.local_device(0), os.environ["CUDA_DEVICE_MAX_CONNECTIONS"])
"""


@pytest.mark.slow
def test_the_cpu_of_a_machine_with_cuda_can_be_chosen():
    """In a process of its own: this one runs on the CPU already."""
    assert torch.cuda.current_device is cpu._current_device
    variables = {k: v for k, v in os.environ.items() if k != "CUDA_DEVICE_MAX_CONNECTIONS"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHOOSE_CPU], env=variables, check=True,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.split() == ["cpu", "1"]


def test_a_number_of_connections_that_is_set_stays(monkeypatch):
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8")
    device.set_connections()
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "8"
