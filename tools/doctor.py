"""Reports what this installation can do: versions, devices, extensions, the path of each op.

Examples:
    python tools/doctor.py

Exit code 0 if everything required is there, 78 if something is missing or has a wrong version.
"""

import importlib
import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from packaging.requirements import Requirement
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import megatron_chimed
from megatron_chimed.accelerators import (
    NVIDIA,
    find_accelerators,
    nvidia_driver,
    why_no_cuda,
)
from megatron_chimed.command_line import CommandParser
from megatron_chimed.errors import ConfigError, KernelError, run_command
from megatron_chimed.observe.console import make_console, print_table

PROJECT = "megatron_chimed"
REINSTALL = "run `make install`"
OPTIONAL_MODULES = {
    "flash-attn": ("flash_attn", "faster attention on CUDA; without it sdpa is used"),
    "transformer-engine": ("transformer_engine", "never used"),
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row of the report."""

    name: str
    found: str
    """What is installed, with its version."""
    note: str = ""
    """What it means, or how to install it."""
    warns: bool = False
    """It works, but not as this machine could."""
    ok: bool = True
    """False: something required is missing or has a wrong version."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the report; see the module docstring for the exit code."""
    parse_arguments(argv)
    findings = [*check_versions(), *check_devices(), *check_extensions(), *check_optional()]
    console = make_console()
    print_table(as_table(findings), console)
    print_table(kernel_table(), console)
    missing = [finding.name for finding in findings if not finding.ok]
    if missing:
        raise ConfigError(
            f"this installation cannot work: {', '.join(missing)}. See the table; {REINSTALL}."
        )
    return 0


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_versions() -> Iterator[Finding]:
    """Python, this package, and each of its declared requirements."""
    yield Finding(name="python", found=platform.python_version(), ok=sys.version_info >= (3, 10))
    if installed_version(PROJECT) is None:
        yield Finding(name=PROJECT, found="not installed", note=REINSTALL, ok=False)
        return
    yield Finding(name=PROJECT, found=megatron_chimed.__version__)
    for line in importlib.metadata.requires(PROJECT) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield check_requirement(requirement)


def check_requirement(requirement: Requirement) -> Finding:
    """Whether a distribution is installed in a version that the package can work with."""
    version = installed_version(requirement.name)
    right = version is not None and requirement.specifier.contains(version, prereleases=True)
    note = "" if right else f"needed: {requirement}; {REINSTALL}"
    return Finding(name=requirement.name, found=version or "missing", note=note, ok=right)


def check_devices() -> Iterator[Finding]:
    """The devices that torch sees, if it can be imported."""
    try:
        import torch  # here, so that an installation without it still gets its report
    except (ImportError, OSError) as error:  # OSError: a shared library of CUDA is missing
        yield Finding(name="device", found="torch does not import", note=str(error), ok=False)
        return
    found, reason = find_accelerators(), why_no_cuda()
    if reason and found:
        shown = ", ".join(f"{each.vendor} ({each.evidence})" for each in found)
        note = f"torch cannot use the accelerators of this machine: {reason}; see docs/gpu.md"
        yield Finding(name="accelerators", found=shown, note=note, warns=True)
    if not torch.cuda.is_available():
        note = f"{torch.get_num_threads()} threads; parallel runs use gloo"
        yield Finding(name="device", found="CPU", note=note)
        return
    driver = nvidia_driver() or "unknown"
    yield Finding(name="driver", found=driver, note=f"torch is built for CUDA {torch.version.cuda}")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        note = f"{device.total_memory / 2**30:.0f} GiB, sm_{device.major}{device.minor}"
        yield Finding(name=f"cuda:{index}", found=device.name, note=note)


def check_extensions() -> Iterator[Finding]:
    """The compiled parts of this package."""
    try:
        helpers = importlib.import_module("megatron_chimed._data_helpers")
    except ImportError as error:
        yield Finding(name="_data_helpers", found="not built", note=str(error), ok=False)
        return
    yield Finding(name="_data_helpers", found="built", note=str(helpers.__file__))
    yield from check_kernels()


def check_kernels() -> Iterator[Finding]:
    """Whether the kernels fit this package, and were built for the NVIDIA GPUs of this machine."""
    try:  # here, like torch in check_devices
        from megatron_chimed.kernels.native import load_library, why_not_fused
        from megatron_chimed.kernels.rms_norm import RMS_NORM
    except (ImportError, OSError):
        return  # reported with the devices
    try:
        load_library()
    except KernelError as error:
        yield Finding(name="kernels", found="of another version", note=str(error), ok=False)
        return
    if all(each.vendor != NVIDIA for each in find_accelerators()):
        return
    reason = why_not_fused(RMS_NORM, "cuda")
    found = "not for CUDA" if reason else "built for CUDA"
    note = f"{reason}; until then plain torch computes, slower" if reason else ""
    yield Finding(name="kernels", found=found, note=note, warns=bool(reason))


def check_optional() -> Iterator[Finding]:
    """Optional packages, used or only recognised."""
    for distribution, (module, note) in OPTIONAL_MODULES.items():
        there = importlib.util.find_spec(module) is not None
        version = installed_version(distribution) or (
            "unknown version" if there else "not installed"
        )
        yield Finding(name=distribution, found=version, note=f"optional: {note}")
    yield check_apex()


def check_apex() -> Finding:
    """Distinguishes NVIDIA's apex from the web toolkit of that name on PyPI."""
    note = "optional: never used, our kernels replace it"
    if importlib.util.find_spec("apex") is None:
        return Finding(name="apex", found="not installed", note=note)
    version = installed_version("apex") or "unknown version"
    if importlib.util.find_spec("amp_C") is None:
        note = (
            "without amp_C this is not NVIDIA's apex: the PyPI project is an unrelated web toolkit"
        )
    return Finding(name="apex", found=version, note=note)


def kernel_table() -> Table:
    """Which code each op runs on each device here, and why; a reference path is not a fault."""
    table = Table(title="ops (kernels.backend: auto)", title_justify="left")
    for header in ("op", "device", "path in use", "why"):
        table.add_column(header, overflow="fold")
    try:
        from megatron_chimed.kernels import describe  # here, like torch in check_devices
    except (ImportError, OSError) as error:
        table.add_row("all", "", "none", escape(f"torch does not import: {error}"))
        return table
    try:
        paths = describe()
    except KernelError as error:
        table.add_row("all", "", "none", escape(str(error)))
        return table
    for path in paths:
        table.add_row(path.op, path.device, path.path, path.reason)
    return table


def as_table(findings: Sequence[Finding]) -> Table:
    """The report, one row per finding."""
    table = Table(title="megatron_chimed doctor", title_justify="left")
    for header in ("", "what", "found", "note"):
        table.add_column(header, overflow="fold")
    for finding in findings:
        mark = "[yellow]WARNING[/yellow]" if finding.warns else "[green]ok[/green]"
        mark = mark if finding.ok else "[red]MISSING[/red]"
        table.add_row(mark, *map(Text, (finding.name, finding.found, finding.note)))
    return table


def parse_arguments(argv: Sequence[str] | None) -> None:
    """Answers `--help` and refuses anything else."""
    CommandParser(prog="tools/doctor.py", description=__doc__).parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main))
