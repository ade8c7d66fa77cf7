"""What a machine without network needs beside the repository: wheels, kernels, one script."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_chimed.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
LIMIT_MIB = 64
PYTHON = "3.12"
# What a machine with torch usually lacks. The rest of setup.py's requirements (torch, numpy,
# transformers, pyarrow, ...) is expected there: wheels of torch alone exceed the limit.
PINNED = ("megatron-core", "orjson", "zstandard", "rensa")
# A baseline, in any version; measured where it can be imported.
UNPINNED = ("liger-kernel",)
GLIBC = ("2_28", "2_27", "2_24", "2_17", "2_12", "2_5")
PLATFORMS = [f"manylinux_{version}_x86_64" for version in GLIBC] + [
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
]
INSTALL = """#!/bin/sh
# Run in the root of the repository. Installs beside what is there and touches nothing of it.
set -e
here=$(cd "$(dirname "$0")" && pwd)
python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \\
    --target "$here/site" "$here"/*.whl
cp "$here/_kernels.so" megatron_chimed/_kernels.so
echo "now: PYTHONPATH=$here/site python3 benchmarks/device_check.py --output device_check.json"
"""


def make_bundle(folder: Path, extra: Sequence[str] = ()) -> None:
    """Collects everything in a folder and prints its sizes.

    Args:
        folder: Made if it is missing; wheels that it holds already are kept.
        extra: More packages, as `name` or `name==version`.

    Raises:
        ConfigError: The kernels are not built, a wheel cannot be had, or all of it together with
            the repository is larger than `LIMIT_MIB`.
    """
    kernels = ROOT / "megatron_chimed" / "_kernels.so"
    if not kernels.is_file():
        raise ConfigError(f"{kernels} is not built: run `make install` where nvcc is.")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy2(kernels, folder)
    script = folder / "install.sh"
    script.write_text(INSTALL, encoding="utf-8")
    wanted = [*(_pin(name) for name in PINNED), *UNPINNED, *extra]
    missing = [name for name in wanted if not _find_wheel(folder, name)]
    if missing:
        if problem := _download(folder, missing):
            raise ConfigError(
                f"pip found no wheel of {', '.join(missing)} for Python {PYTHON}: "
                f"{problem}. Fetch it where an index can be reached and put it into "
                f"{folder}."
            )
    _check_size(folder)
    print(f"\nthere, in the root of the repository: sh {script}")


def _check_size(folder: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    sizes["the repository's files"] = _repository_bytes()
    total = sum(sizes.values()) / 2**20
    for name, size in sizes.items():
        print(f"{size / 2**20:8.2f} MiB  {name}")
    print(f"{total:8.2f} MiB  together, of {LIMIT_MIB}")
    if total > LIMIT_MIB:
        raise ConfigError(
            f"the bundle and the repository take {total:.1f} MiB, but {LIMIT_MIB} MiB can be "
            f"brought along. Remove what is not needed from {folder}."
        )


def _download(folder: Path, names: Sequence[str]) -> str:
    """Fetches wheels for the other Python; '' or pip's last line."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    command += [flag for name in PLATFORMS for flag in ("--platform", name)]
    command += ["--dest", str(folder), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else (done.stderr.strip() or "no message").splitlines()[-1]


def _pin(name: str) -> str:
    """`name==version` of constraints.txt."""
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.split("==")[0] == name:
            return line.split(";")[0].strip()
    raise ConfigError(f"constraints.txt has no line for {name}. Add one.")


def _find_wheel(folder: Path, name: str) -> bool:
    package, _, version = name.partition("==")
    return any(folder.glob(f"{package.replace('-', '_')}-{version or ''}*.whl"))


def _repository_bytes() -> int:
    """Tracked files, and untracked ones that git does not ignore."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others"]
    listed = subprocess.run(
        [*command, "--exclude-standard"], capture_output=True, text=True, check=True
    )
    paths = (ROOT / name for name in listed.stdout.split("\0") if name)
    return sum(path.stat().st_size for path in paths if path.is_file())
