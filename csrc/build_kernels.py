"""Compiles csrc/ into the kernel library: a few compiler calls, two of them at a time.

One library without Python, bound through torch's stable ABI: one binary serves several versions of
torch and of Python. The CPU part is always built, the CUDA part where nvcc is found; BUILD_CUDA=1
insists on it, BUILD_CUDA=0 leaves it out. Called by setup.py. As a command it builds nothing: it
warns if the build leaves the GPUs of this machine without kernels, which pip would not show.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


def load_interface() -> ModuleType:
    """`kernels/interface.py`, by its path: the package that it is in imports torch."""
    path = ROOT / "megatron_chimed" / "kernels" / "interface.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, f"{path} is no module"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_nvcc() -> str | None:
    """The CUDA compiler, or None where there is none or BUILD_CUDA=0 leaves it out."""
    wish = os.environ.get("BUILD_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"build: BUILD_CUDA={wish!r}, but it is 0, 1 or unset (= if possible).")
    beside = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc"
    nvcc = None if wish == "0" else shutil.which("nvcc") or shutil.which(beside)
    if wish == "1" and nvcc is None:
        raise SystemExit(
            f"build: BUILD_CUDA=1, but nvcc is neither on PATH nor at {beside}: install the CUDA "
            "toolkit, set CUDA_HOME, or build without CUDA (BUILD_CUDA=0)."
        )
    return nvcc


def warning_without_nvcc(root: Path = Path("/")) -> str:
    """What to say where this machine has NVIDIA GPUs and no nvcc to build their kernels; or ''."""
    if find_nvcc():
        return ""
    shown = ("dev/nvidia[0-9]*", "proc/driver/nvidia/gpus/*")
    if not any(path for pattern in shown for path in root.glob(pattern)):
        return ""
    return (
        "build: WARNING: this machine has NVIDIA GPUs, but the kernels are built without CUDA: "
        "plain torch computes their ops on GPUs, slower and with more memory. Install nvcc (the "
        "CUDA toolkit) and run `BUILD_CUDA=1 make -B install`; see docs/gpu.md."
    )


def kernel_commands(torch: Path, nvcc: str | None) -> dict[str, list[str]]:
    """Object name -> the command that compiles its source, which comes last."""
    flags = ["-c", "-O3", "-Icsrc/include"]
    # Else the error messages of torch's headers would put this machine's paths into the library.
    paths = f"-fmacro-prefix-map={torch / 'include'}=torch"
    host = ["-fPIC", "-fvisibility=hidden", "-Wno-psabi", paths]
    gxx = [os.environ.get("CXX", "g++"), *flags, *host, "-std=c++20"]
    # -std=c++20 instead of gnu++20 would forbid fused multiply-add.
    cpu = [*gxx, "-ffp-contract=fast", "-fno-math-errno"]
    # A stable ABI: the library works with this torch and all later ones.
    major, minor = load_interface().OLDEST_TORCH
    target = f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000"
    binding = ["-DCHIMED_BINDING", target, f"-I{torch / 'include'}"]
    commands = {"cpu_ops": [*gxx, *binding, "csrc/bind/cpu_ops.cpp"]}
    levels = {"baseline": []}
    if platform.machine() in ("x86_64", "AMD64"):
        levels |= {"avx2": ["-march=x86-64-v3"], "avx512": ["-march=x86-64-v4"]}
    for level, march in levels.items():
        define = f"-DCHIMED_LEVEL={level}"
        commands[f"cpu_{level}"] = [*cpu, *march, define, "csrc/cpu/kernels.cpp"]
    if nvcc:
        cuda = [nvcc, *flags, "-Xcompiler", ",".join(host)]
        commands["cuda_ops"] = [*cuda, "-std=c++20", *binding, "csrc/bind/cuda_ops.cpp"]
        # A100, H100/H200, and PTX that later GPUs compile at first use.
        codes = ("arch=compute_80,code=sm_80", "arch=compute_90,code=[sm_90,compute_90]")
        cuda += ["-std=c++17", "--threads=2", *(f"-gencode={code}" for code in codes)]
        for source in ROOT.glob("csrc/cuda/*.cu"):
            commands[f"cuda_{source.stem}"] = [*cuda, str(source.relative_to(ROOT))]
    return commands


def run_compiler(command: list[str]) -> None:
    """Runs a compiler with visible output; its failure ends the build."""
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        way_out = ", or build without CUDA: BUILD_CUDA=0" if "nvcc" in command[0] else ""
        raise SystemExit(f"build: `{' '.join(command)}` failed, see above. Fix it{way_out}.")


def compile_object(name: str, command: list[str]) -> str:
    """Compiles unless the object is newer than all that its source may include, and this file."""
    output = ROOT / "build" / "kernels" / f"{name}.o"
    source = ROOT / command[-1]
    # A binding includes the ops' sources; these include headers of their own folder.
    included = ("*/*.h", "*/*.cuh", "*/*.cu") if source.parent.name == "bind" else ("include/*.h",)
    files = [path for pattern in included for path in (ROOT / "csrc").glob(pattern)]
    files += source.parent.glob("*.*h")
    newest = max(path.stat().st_mtime for path in (source, *files, Path(__file__)))
    if not output.exists() or output.stat().st_mtime < newest:
        output.parent.mkdir(parents=True, exist_ok=True)
        run_compiler([*command, "-o", str(output)])
    return str(output)


def compile_stamp() -> str:
    """The object that says for which schemas the library was built: kernels/interface.py."""
    interface, source = load_interface(), ROOT / "build" / "kernels" / "interface.cpp"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(interface.stamp_source(interface.expected_digest()))
    output = source.with_suffix(".o")
    run_compiler([os.environ.get("CXX", "g++"), "-c", "-fPIC", str(source), "-o", str(output)])
    return str(output)


def build_kernels(output: Path) -> None:
    """Compiles what changed and links the library.

    Args:
        output: Where the library goes.

    Raises:
        SystemExit: torch is missing, BUILD_CUDA asks for what is not there, or a compiler failed.
    """
    torch = importlib.util.find_spec("torch")  # found, not imported: that would take seconds
    if torch is None:
        raise SystemExit("build: the kernels need torch's headers: install torch first.")
    folder, nvcc = Path(torch.origin).parent, find_nvcc()
    commands = kernel_commands(folder, nvcc)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_object, commands, commands.values()))
    link(objects, output, folder, nvcc)


def link(objects: Sequence[str], output: Path, torch: Path, nvcc: str | None) -> None:
    """Links objects and the stamp.

    Args:
        objects: Of all commands of `kernel_commands`.
        output: Where the library goes.
        torch: Folder of the package.
        nvcc: As from `find_nvcc`.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    # No rpath: Python has loaded libtorch before, and the library stays movable. libtorch.so itself
    # holds nothing, but in torch's CUDA builds it brings libtorch_cuda.so with the current stream.
    linker = [nvcc, "-cudart=static", "-nodlink"] if nvcc else [os.environ.get("CXX", "g++")]
    libraries = ["-Xlinker", "--no-as-needed", f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu"]
    run_compiler([*linker, "-shared", "-o", str(output), *objects, compile_stamp(), *libraries])


if __name__ == "__main__":
    if message := warning_without_nvcc():
        print(message)
