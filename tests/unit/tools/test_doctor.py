"""The doctor's report: green where all is there, exit code 78 and a name where it is not."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_chimed.accelerators import Accelerators
from megatron_chimed.errors import ConfigError, KernelError, run_command
from megatron_chimed.kernels import native
from megatron_chimed.kernels.binding import OPS
from megatron_chimed.kernels.native import ComposedOp
from tools import doctor

ROOT = Path(__file__).resolve().parents[3]
COMPOSED = {op.name for op in OPS if isinstance(op, ComposedOp)}

INSTALLED = {
    "megatron_chimed": "0.1.0",
    "torch": "2.13.0+cpu",
    "megatron-core": "0.16.1",
    "numpy": "2.4.6",
}


@pytest.fixture
def environment(monkeypatch):
    """Makes `INSTALLED`, which the test may change, the installed distributions."""
    installed = dict(INSTALLED)

    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    requirements = ["torch>=2.10", "megatron-core==0.16.1", "numpy>=1.26", 'ruff; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requirements)
    return installed


def findings_by_name(findings):
    return {finding.name: finding for finding in findings}


def test_a_complete_environment_is_green(environment):
    findings = findings_by_name(doctor.check_versions())
    assert all(finding.ok for finding in findings.values())
    assert findings["torch"].found == "2.13.0+cpu"
    assert "ruff" not in findings, "what only developers need is not required"


def test_another_megatron_core_is_named(environment, capsys):
    environment["megatron-core"] = "0.17.0"
    finding = findings_by_name(doctor.check_versions())["megatron-core"]
    assert not finding.ok
    assert finding.note == "needed: megatron-core==0.16.1; run `make install`"
    assert run_command(lambda: doctor.main([])) == 78
    captured = capsys.readouterr()
    assert "MISSING" in captured.out
    assert "ConfigError: this installation cannot work: megatron-core" in captured.err


def test_what_is_not_installed_is_missing(environment):
    del environment["numpy"]
    assert findings_by_name(doctor.check_versions())["numpy"].found == "missing"
    del environment["megatron_chimed"]
    (finding,) = (finding for finding in doctor.check_versions() if not finding.ok)
    assert (finding.name, finding.found) == ("megatron_chimed", "not installed")


@pytest.mark.parametrize(
    ("modules", "note"),
    [
        (set(), "never used"),
        ({"apex"}, "unrelated web toolkit"),
        ({"apex", "amp_C"}, "never used"),
    ],
)
def test_the_web_toolkit_called_apex_is_recognised(environment, monkeypatch, modules, note):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in modules or None)
    finding = doctor.check_apex()
    assert note in finding.note
    assert finding.ok, "nothing here needs it"
    assert (finding.found == "not installed") == (not modules)


def rows_of(table):
    return list(zip(*(column.cells for column in table.columns), strict=True))


def test_every_op_is_listed_with_its_path_and_the_reason():
    rows = {op: rest for op, device, *rest in rows_of(doctor.kernel_table()) if device == "cpu"}
    assert set(rows) == {op.name for op in OPS}
    for op, (path, reason) in rows.items():
        assert path.startswith("fused CPU") or path == "reference" or op in COMPOSED
        assert reason


def test_kernels_that_were_not_built_say_so(monkeypatch):
    monkeypatch.setattr(native, "why_not_fused", lambda op, device: "_kernels.so is not there")
    for op, _, path, reason in rows_of(doctor.kernel_table()):
        if op in COMPOSED:  # there is nothing of them to build
            continue
        assert (path, reason) == ("reference", "_kernels.so is not there")


def test_without_torch_there_is_a_report_all_the_same(monkeypatch):
    monkeypatch.setitem(sys.modules, "megatron_chimed.kernels", None)
    ((op, _, path, reason),) = rows_of(doctor.kernel_table())
    assert (op, path) == ("all", "none")
    assert reason.startswith("torch does not import")


NVIDIA = Accelerators(vendor="NVIDIA", evidence="/dev/nvidia0")


@pytest.mark.parametrize("built", [True, False])
def test_gpus_without_their_kernels_are_a_warning_with_the_command(monkeypatch, built):
    reason = "" if built else f"_kernels.so was built without CUDA: {native.BUILD_HINT}"
    monkeypatch.setattr(doctor, "find_accelerators", lambda: [NVIDIA])
    monkeypatch.setattr(native, "why_not_fused", lambda op, device: reason)
    (finding,) = doctor.check_kernels()
    assert finding.ok and finding.warns is not built
    assert ("run `BUILD_CUDA=1 make -B install`" in finding.note) is not built
    (row,) = rows_of(doctor.as_table([finding]))
    assert ("WARNING" in str(row[0])) is not built


def test_kernels_of_another_version_are_a_fault_with_the_command(monkeypatch):
    def refuse():
        raise KernelError("_kernels.so does not fit this version: run `make install`")

    monkeypatch.setattr(native, "load_library", refuse)
    native._reason.cache_clear()
    try:
        (finding,) = doctor.check_kernels()
        ((*_, path, reason),) = rows_of(doctor.kernel_table())
    finally:
        native._reason.cache_clear()
    assert not finding.ok and "run `make install`" in finding.note
    assert (path, "run `make install`" in reason) == ("none", True)


def test_gpus_that_torch_cannot_use_are_a_warning_with_the_reason(monkeypatch):
    monkeypatch.setattr(doctor, "find_accelerators", lambda: [NVIDIA])
    monkeypatch.setattr(doctor, "why_no_cuda", lambda: "the driver is too old")
    first, cpu = doctor.check_devices()
    assert (first.found, first.warns) == ("NVIDIA (/dev/nvidia0)", True)
    assert "torch cannot use the accelerators of this machine: the driver is too" in first.note
    assert cpu.found == "CPU"
    monkeypatch.setattr(doctor, "find_accelerators", list)
    assert [finding.found for finding in doctor.check_devices()] == ["CPU"]
    assert not list(doctor.check_kernels())


def test_an_argument_is_refused():
    with pytest.raises(ConfigError, match="^--verbose is unknown. See `tools/doctor.py --help`"):
        doctor.main(["--verbose"])


def test_help_works_as_a_command():
    result = subprocess.run(
        [sys.executable, "tools/doctor.py", "--help"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "python tools/doctor.py" in result.stdout
