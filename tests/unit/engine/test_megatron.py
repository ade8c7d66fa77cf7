"""megatron-core is the pinned one, quiet, runs our Adam, and never waits longer than told."""

import datetime
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron_chimed import engine
from megatron_chimed.config.optim import OptimConfig
from megatron_chimed.engine import megatron
from megatron_chimed.errors import ConfigError, ParallelError
from megatron_chimed.kernels import FusedAdam
from tests.unit.engine.world import layout_of, one_rank, settings_of, whole_model

ROOT = Path(__file__).resolve().parents[3]


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )


def test_another_version_is_refused():
    with pytest.raises(ConfigError) as caught:
        megatron.check_version("0.17.0")
    assert "megatron-core 0.17.0 is installed" in str(caught.value)
    assert "pip install megatron-core==0.16.1" in str(caught.value)


def test_the_installed_version_is_checked(monkeypatch):
    monkeypatch.setattr(megatron.importlib.metadata, "version", lambda name: "0.15.0")
    with pytest.raises(ConfigError, match="megatron-core 0.15.0 is installed"):
        megatron.prepare()


def test_a_missing_megatron_core_is_named(monkeypatch):
    def missing(name):
        raise megatron.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(megatron.importlib.metadata, "version", missing)
    with pytest.raises(ConfigError, match="not installed. Install it: pip install megatron-core=="):
        megatron.prepare()


IMPORT_AND_OPTIMIZE = """
import sys
import torch
compiler = torch.compile
import megatron_chimed.run
from megatron_chimed.kernels import FusedAdam
adam = FusedAdam([torch.nn.Parameter(torch.ones(2))])
adam.zero_grad()
adam.load_state_dict(adam.state_dict())
assert torch.compile is compiler
heavy = ("torch._dynamo", "torch._inductor", "torch.utils.tensorboard", "wandb", "transformers")
found = [name for name in heavy if name in sys.modules]
assert not found, found
"""


def test_importing_all_that_trains_prints_nothing_and_loads_no_compiler():
    done = run_python(IMPORT_AND_OPTIMIZE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_preparing_twice_changes_nothing_more():
    def patched():
        return torch.Tensor.type, torch.Tensor.cuda, torch.cuda.current_device, torch.cuda.stream

    before = patched()
    megatron.prepare()
    assert patched() == before


def built_optimizer(*, distributed, precision):
    with one_rank(distributed_optimizer=distributed) as ranks:
        model = whole_model(ranks, precision=precision)
        settings = settings_of(ranks, precision=precision)
        _, optimizer = engine.make_trainable(
            [model], settings, ranks, optim=OptimConfig(), specs={}
        )
        return optimizer


@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_adam_that_is_built_is_ours(distributed, precision):
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    optimizer = built_optimizer(distributed=distributed, precision=precision)
    assert type(optimizer.inner) is FusedAdam
    assert isinstance(optimizer._megatron, DistributedOptimizer) == distributed
    groups = optimizer.inner.param_groups
    assert all(p.dtype == torch.float32 for group in groups for p in group["params"])
    assert {group["wd_mult"] for group in groups} == {0.0, 1.0}


def every_timeout():
    """Timeouts of all process groups of this process, the library's own ones too."""
    cpu = torch.device("cpu")
    groups = list(dist.distributed_c10d._world.pg_map)
    assert groups, "no process group"
    return {group._get_backend(cpu).options._timeout for group in groups}


def timeouts(rank, world_size, store_path, parallel):
    layout = layout_of(world_size=world_size, timeout_seconds=77.5, **parallel)
    store = dist.FileStore(store_path, world_size)
    ranks = engine.join(layout, rank=rank, local_rank=rank, store=store)
    try:
        groups = (
            ranks.tensor_group,
            ranks.pipeline_group,
            ranks.data_group,
        )
        found = {g._get_backend(torch.device("cpu")).options._timeout for g in groups}
        found.add(ranks.agreement._group.options._timeout)
        return found | every_timeout(), len(dist.distributed_c10d._world.pg_map)
    finally:
        engine.leave()


@pytest.mark.parametrize(
    "parallel", [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}, {}]
)
def test_every_group_has_the_timeout_of_the_layout(gloo_pool, parallel):
    sizes = {"pipeline_split": (1, 2)} if "pipeline_parallel_size" in parallel else {}
    for found, num_groups in gloo_pool.run(timeouts, 2, {**parallel, **sizes}, init=False):
        # Agreement waits longer: for one rank's share of a checkpoint.
        assert found == {datetime.timedelta(seconds=s) for s in (77.5, 6 * 77.5)}
        assert num_groups > 2


def test_leaving_twice_and_before_joining_is_safe():
    engine.leave()
    with one_rank():
        assert dist.is_initialized()
    engine.leave()
    assert not dist.is_initialized()


@pytest.mark.timing
def test_ranks_that_do_not_come_are_an_error_with_the_time(tmp_path):
    layout = layout_of(world_size=2, timeout_seconds=0.2)
    store = dist.FileStore(str(tmp_path / "store"), 2)
    with pytest.raises(ParallelError) as caught:
        engine.join(layout, rank=0, local_rank=0, store=store, start_seconds=0.1)
    engine.leave()
    assert "rank 0 of 2 could not join the job within 0.2 s" in str(caught.value)
    assert "MASTER_ADDR and MASTER_PORT" in str(caught.value)


def test_world_from_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert engine.world_from_environment() == (0, 1, 0)
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert engine.world_from_environment() == (5, 8, 1)
    monkeypatch.setenv("RANK", "-1")
    with pytest.raises(ConfigError, match=r"are \['-1', '8', '1'\]; torchrun sets all three"):
        engine.world_from_environment()


def test_megatron_core_may_be_imported_before_us():
    done = run_python(
        "import warnings; warnings.simplefilter('ignore')\n"
        "from megatron.core.tensor_parallel import layers\n"
        "assert not layers._grad_accum_fusion_available\n"
        "import megatron_chimed.engine\n"
        "assert layers._grad_accum_fusion_available\n"
        "from megatron_chimed.kernels import wgrad_gemm_accum_fp32 as ours\n"
        "assert layers.fused_weight_gradient_mlp_cuda.wgrad_gemm_accum_fp32 is ours\n"
    )
    assert done.returncode == 0, done.stderr
