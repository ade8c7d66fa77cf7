"""Where each kernel test runs, and memory that shows every element a kernel forgets to write."""

from collections.abc import Iterator

import pytest
import torch

from megatron_chimed.kernels import native
from megatron_chimed.kernels.rms_norm import RMS_NORM

TARGETS = [
    *(f"cpu {level}" for level in native.CPU_LEVELS),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


@pytest.fixture(params=TARGETS)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The CPU at each instruction set level that it has, and CUDA."""
    name, _, level = request.param.partition(" ")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device, or no option --gpu")
    if reason := native.why_not_fused(RMS_NORM, name):
        pytest.skip(f"no fused kernels: {reason}")
    if name == "cuda":
        yield name
        return
    best = native.set_cpu_level(-1)
    wanted = native.CPU_LEVELS.index(level)
    try:
        if native.set_cpu_level(wanted) != wanted:
            pytest.skip(f"this processor has no {level}")
        yield name
    finally:
        native.set_cpu_level(best)


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Fills new memory with NaN, so that an output element that no kernel writes is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all(), "torch does not poison new memory"
    yield
    torch.use_deterministic_algorithms(False)
