"""Builds and installs `megatron_chimed`, its dataset helpers and its fused kernels.

Run through `make install`, which first installs the pinned versions of constraints.txt; the ranges
below are what the code itself needs. Build with `--no-build-isolation`: an isolated build would
fetch its own copies of what the environment already has.

The kernels become `megatron_chimed/_kernels.so`, with CUDA where nvcc is found (`BUILD_CUDA=0` or
`1` decides instead): csrc/build_kernels.py.
"""

import os
import re
import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))

from build_kernels import build_kernels  # noqa: E402  (found through the line above)

REQUIREMENTS = [
    "torch>=2.10",
    "megatron-core==0.16.1",  # its internals are adapted in engine/: any other version is refused
    "numpy>=1.26",
    "sentencepiece>=0.2.3",  # gives ids as arrays
    "transformers>=5.0",
    "protobuf>=5",  # how transformers reads a sentencepiece model
    "safetensors>=0.5",
    "PyYAML>=6",
    "rich>=13",
    "packaging>=23",
    "orjson>=3.10",
    "zstandard>=0.22",
    "pyarrow>=16",
    "rensa>=0.5,<0.6",  # MinHash; near-duplicates are found by signatures of this version
    "tensorboard>=2.16",
    "matplotlib>=3.8",
    "psutil>=5.9",
]
WANDB_REQUIREMENTS = ["wandb>=0.20"]  # logging.wandb; for logging.swanlab see `make trackers`
# torch's builds for GPUs bring the one version of Triton that fits them, so this extra is for CPU
# builds: Triton's interpreter, and its compiler without a GPU, in tests.
TRITON_REQUIREMENTS = ["triton>=3.6; sys_platform == 'linux'"]
JIEBA_REQUIREMENTS = ["jieba>=0.42"]  # words of the text metrics of mode llamafactory
# Whose numbers ours are compared with in tests.
METRIC_REQUIREMENTS = [
    *JIEBA_REQUIREMENTS,
    "choix>=0.4",  # Bradley-Terry; brings scipy
    "nltk>=3.9",
    "rouge==1.0.1",  # the package that the authors of ChiMed-GPT use
    "rouge-chinese==1.0.3",
    "rouge-score>=0.1.2",
    "sacrebleu>=2.4",
    "seqeval>=1.2",  # brings scikit-learn
]
DEVELOPMENT_REQUIREMENTS = [
    *WANDB_REQUIREMENTS,  # its offline mode is tested
    *METRIC_REQUIREMENTS,
    "peft>=0.17",  # loads the adapters that are exported
    "pytest>=8.2,<9.2",  # with 9.2, pytest-xdist 3.8 does not see which tests stay together
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "ruff>=0.9",
    "basedpyright>=1.40",
]
BENCHMARK_REQUIREMENTS = ["accelerate>=1.1"]  # transformers.Trainer, a baseline, needs it


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


class BuildExtensions(build_ext):
    """pybind11's build_ext for the dataset helpers, our own compiler calls for the kernels."""

    def get_ext_filename(self, fullname: str) -> str:
        """The kernel library is no Python module: its name carries no Python version."""
        if fullname.endswith("_kernels"):
            return fullname.replace(".", os.sep) + ".so"
        return super().get_ext_filename(fullname)

    def build_extension(self, ext: Extension) -> None:
        """Compiles and links one extension."""
        if ext.name.endswith("_kernels"):
            build_kernels(Path(self.get_ext_fullpath(ext.name)))
        else:
            super().build_extension(ext)


setup(
    name="megatron_chimed",
    version=read_version(),
    description="Megatron training of Chinese medical language models, end to end",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["megatron_chimed", "megatron_chimed.*"]),
    install_requires=REQUIREMENTS,
    extras_require={
        "wandb": WANDB_REQUIREMENTS,
        "triton": TRITON_REQUIREMENTS,
        "jieba": JIEBA_REQUIREMENTS,
        "dev": DEVELOPMENT_REQUIREMENTS,
        "bench": BENCHMARK_REQUIREMENTS,
    },
    ext_modules=[data_helpers(), Extension("megatron_chimed._kernels", sources=[])],
    cmdclass={"build_ext": BuildExtensions},
    package_data={
        "megatron_chimed": [
            "py.typed",
            "*.pyi",
            "evaluation/tasks/shipped/*.yaml",
            "evaluation/scales/shipped/*.yaml",
        ]
    },
    zip_safe=False,
)
