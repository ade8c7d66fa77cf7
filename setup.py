"""Builds and installs `megatron_chimed` and its C++ extension of dataset helpers.

Run through `make install`, which first installs the pinned versions of constraints.txt; the ranges
below are what the code itself needs. Build with `--no-build-isolation`: an isolated build would
fetch its own copies of what the environment already has.
"""

import re
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

REQUIREMENTS = [
    "torch>=2.10",
    "megatron-core==0.16.1",  # its internals are adapted in engine/: any other version is refused
    "numpy>=1.26",
    "sentencepiece>=0.2",
    "transformers>=5.0",
    "protobuf>=5",  # how transformers reads a sentencepiece model
    "safetensors>=0.5",
    "jsonargparse[signatures]>=4.40",
    "PyYAML>=6",
    "rich>=13",
    "packaging>=23",
    "orjson>=3.10",
    "zstandard>=0.22",
    "pyarrow>=16",
    "tensorboard>=2.16",
    "matplotlib>=3.8",
]
DEVELOPMENT_REQUIREMENTS = [
    "pytest>=8.2",
    "pytest-timeout>=2.3",
    "hypothesis>=6.100",
    "ruff>=0.9",
]


def read_version() -> str:
    """The package's `__version__`, read from the source: importing it would need the build."""
    source = (ROOT / "megatron_chimed" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, flags=re.MULTILINE)
    if match is None:
        raise SystemExit('setup.py: megatron_chimed/__init__.py has no line __version__ = "..."')
    return match.group(1)


def data_helpers() -> Pybind11Extension:
    """The sample-index builders of csrc/data, which need neither torch nor CUDA."""
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/data/*.cpp"))
    if not sources:
        raise SystemExit(f"setup.py: no C++ source in {ROOT / 'csrc' / 'data'}: clone again.")
    headers = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/data/*.h"))
    return Pybind11Extension(
        "megatron_chimed._data_helpers",
        sources,
        depends=headers,
        cxx_std=17,
        extra_compile_args=["-O3"],
    )


setup(
    name="megatron_chimed",
    version=read_version(),
    description="Megatron training of Chinese medical language models, end to end",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["megatron_chimed", "megatron_chimed.*"]),
    install_requires=REQUIREMENTS,
    extras_require={"dev": DEVELOPMENT_REQUIREMENTS},
    ext_modules=[data_helpers()],
    cmdclass={"build_ext": build_ext},
    zip_safe=False,
)
