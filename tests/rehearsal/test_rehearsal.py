"""The real job, training step and generation on fake CUDA tensors, without a GPU.

What an op computes is not seen here, but all that surrounds it is: tensors on the wrong device,
waits of the host for the device, masks of s x s elements, collectives that NCCL would refuse. A
worker process (`worker.py`) believes in GPUs; each test sends it the name of a case.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rehearsal import fake_cuda
from tests.rehearsal.cases import CASES, FAULTS
from tests.tiers import full_but

ROOT = Path(__file__).resolve().parents[2]

# Where the host may wait for the device, and why. The steps in which nothing else waits are what a
# GPU is given ahead.
WAITS = {
    # The loss is checked and reported once a step.
    "engine/pipeline_schedule.py:_sum_reports",
    # The gradient's norm decides whether the step is taken.
    "engine/optimizer.py:_scaled_norm",
    # megatron-core reads the number of tokens once a step.
    "megatron.core/distributed/finalize_model_grads.py:finalize_model_grads",
    # megatron-core after each batched exchange between pipeline stages.
    "megatron.core/pipeline_parallel/p2p_communication.py:_communicate",
    # Lengths of packed samples: torch's kernel wants the longest on the host. Once a forward pass.
    "model/segments.py:lengths",
    # Numbers of candidates and pairs are shapes. Once a micro-batch of stages reward and dpo.
    "training/objectives/pairs.py:find_candidates",
    # Once, before the first step.
    "training/selftest.py:_is_scored",
    # Generation: a token decides what comes next.
    "generation/decoder.py:_draw",
    "generation/decoder.py:_sample",
}
# What a step may copy from the host after its batch.
UPLOADS = {
    # Where packed samples begin, from the lengths above.
    "model/segments.py:bounds",
}
DENSE = {
    **dict.fromkeys(
        (f"quickstart, {name}, {n} GPUs" for name in ("sft", "reward") for n in (1, 2)),
        "packed fp32, as below",
    ),
    "packed fp32": "torch's kernel for packed samples takes half precision alone",
    "reference attention": "it writes all scores",
}
KEPT = [
    "fp32, recompute none",
    "bf16, recompute full",
    "fp16, recompute selective",
    "tp8 sp, rank 7",
    "dp8 distributed, rank 0",
    "tp2 pp2 dp2, rank 4",
    "pp2 vpp2, rank 0",
    "pretrain, adapters",
    "sft",
    "reward, tp2 pp2 dp2, rank 7",
    "dpo, tp8 sp, rank 7",
    "ziya2_13b, pretrain, 8 GPUs, rank 7",
    "qwen2_5_7b, pretrain, 8 GPUs, rank 7",
    "qwen3_8b, sft, 8 GPUs, rank 7",
    "llama3_1_8b, reward, 8 GPUs, rank 0",
    "quickstart, sft, 2 GPUs",
]


class Rehearsals:
    """The worker process; `seen` is what happened in each part of a case."""

    def __init__(self, library: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.rehearsal.worker", str(library)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self, name: str) -> dict[str, Any]:
        """`seen`, or the `error` that ended the case."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the worker died in {name!r}: exit code {self._process.wait()}"
        return json.loads(line)

    def close(self) -> None:
        """Ends the worker."""
        self._process.communicate()


@pytest.fixture(scope="module")
def rehearsals(tmp_path_factory) -> Iterator[Rehearsals]:
    import torch

    if torch.backends.cuda.is_built():
        pytest.skip("this torch has CUDA: the tests of a GPU machine run on its device instead")
    library = fake_cuda.build(tmp_path_factory.mktemp("fake_cuda"))
    if isinstance(library, str):
        pytest.skip(library)
    worker = Rehearsals(library)
    yield worker
    worker.close()


def askers(seen: dict[str, Any], what: str) -> set[str]:
    """The functions in which something happened."""
    return {place.rpartition(":")[0] for part in seen.values() for place in part[what]}


@pytest.mark.parametrize(
    "name", full_but(KEPT, [name for name in CASES if not name.startswith("fault")])
)
def test_a_run_on_a_gpu(rehearsals, name):
    """A tensor on another device is an error in the case itself."""
    answer = rehearsals.answer(name)
    assert "error" not in answer, answer["error"]
    seen = answer["seen"]
    assert seen["step"]["ops"] > 100
    assert askers(seen, "waits") <= WAITS
    assert askers({"step": seen["step"]}, "uploads") <= UPLOADS
    if name not in DENSE:
        assert not askers(seen, "dense")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_mistake_is_found(rehearsals, fault):
    answer = rehearsals.answer(f"fault: {fault}")
    if fault == "a sum on the host":
        assert "at least two devices, cuda:0 and cpu" in answer["error"]
        return
    what = "waits" if fault == "a value is read" else "dense"
    assert askers(answer["seen"], what) - WAITS == {"engine/pipeline_schedule.py:_loss"}
