"""What the emulation of CUDA refuses: errors of a device, and mistakes that it would not report.

Each case breaks one line in a copy of the sources and sees that the tests of swiglu fail.
"""

import shutil

import pytest
import torch

from tests.unit.kernels.cuda_emulation import large
from tests.unit.kernels.cuda_emulation.harness import ROOT, build_library
from tests.unit.kernels.test_cuda_emulation import test_swiglu as check_swiglu

# A change of a source, and what the failure says.
MUTATIONS = {
    "another stream": ("launch.cuh", "static_cast<cudaStream_t>(stream)", "nullptr", "stream"),
    "more threads than the bounds": (
        "swiglu.cu",
        "__launch_bounds__(kThreads)",
        "__launch_bounds__(kThreads / 8)",
        "__launch_bounds__",
    ),
    "too large a grid": ("launch.cuh", "dim3(unsigned(blocks))", "dim3(1, 1 << 16)", "limits"),
    "more shared memory than a device grants": (
        "launch.cuh",
        "config.blockDim = threads;",
        "config.blockDim = threads, config.dynamicSmemBytes = 49 << 10;",
        "limits",
    ),
    "unaligned vectors": (
        "launch.cuh",
        "% 16 != 0) return false",
        "% 1 != 0) return false",
        "align",
    ),
    "an offset of 32 bits": (
        "swiglu.cu",
        "y + int64_t(blockIdx.x) * f",
        "y + int(blockIdx.x) * int(f)",
        "other rows",
    ),
}


@pytest.mark.full
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_found(tmp_path, name):
    file, old, new, message = MUTATIONS[name]
    sources = tmp_path / "cuda"
    shutil.copytree(ROOT / "csrc" / "cuda", sources)
    text = (sources / file).read_text()
    assert old in text
    (sources / file).write_text(text.replace(old, new))
    for source in sources.glob("*.cu"):
        if source.name != "swiglu.cu":
            source.unlink()
    mutated = build_library(tmp_path, sources)
    with pytest.raises(AssertionError, match=message):
        for offset in (0, 1):
            check_swiglu(mutated, torch.bfloat16, 2, 4104, offset)
        large.assert_far_rows_are_right(mutated, "swiglu", 0)
