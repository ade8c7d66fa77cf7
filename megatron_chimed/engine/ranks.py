"""Joining a job: process groups, their timeouts, and this rank's place in the layout."""

import contextlib
import dataclasses
import datetime
import gc
import itertools
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch._C._distributed_c10d import HashStore
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from megatron_chimed.config.parallel import ParallelLayout
from megatron_chimed.engine.agreement import Agreement
from megatron_chimed.engine.device import local_device, uses_cuda
from megatron_chimed.engine.versions import versions
from megatron_chimed.errors import ConfigError, ParallelError, is_gpu_out_of_memory

AGREEMENT_PATIENCE = 6  # times the timeout of a collective
START_SECONDS = 60.0

# Text of gloo's plain RuntimeError if a peer is gone or silent.
_LOST_PEER = (
    "gloo/transport",
    "Timed out waiting",
    "Connection closed by peer",
    "Connection reset",
)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's place in the job. Made once by `join` and passed down, never global."""

    layout: ParallelLayout
    rank: int
    tensor_rank: int
    pipeline_rank: int
    data_rank: int
    tensor_group: dist.ProcessGroup
    pipeline_group: dist.ProcessGroup
    data_group: dist.ProcessGroup
    agreement: Agreement
    """All ranks: for decisions that must be the same everywhere, never for tensors."""
    device: torch.device

    @property
    def is_last_stage(self) -> bool:
        """Whether the head and the loss are on this rank (in its last chunk)."""
        return self.pipeline_rank == self.layout.pipeline_parallel_size - 1

    @property
    def last_stage_rank(self) -> int:
        """Global rank of the last stage in this rank's pipeline."""
        return dist.get_process_group_ranks(self.pipeline_group)[-1]


def world_from_environment() -> tuple[int, int, int]:
    """(rank, world size, local rank) as torchrun set them; (0, 1, 0) without torchrun.

    Raises:
        ConfigError: torchrun's variables are set but are not numbers.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    values = [os.environ.get(name, default) for name, default in zip(names, "010", strict=True)]
    if not all(value.isdigit() for value in values):
        raise ConfigError(
            f"RANK, WORLD_SIZE and LOCAL_RANK are {values}; torchrun sets all three to numbers. "
            "Start the command with torchrun, or unset them for one process."
        )
    rank, world_size, local_rank = map(int, values)
    return rank, world_size, local_rank


def job_stores(*, rank: int, world_size: int) -> Iterator[Store | None]:
    """One store for each of the jobs that the same processes join one after another.

    Each job needs keys of its own: torchrun's store still holds the addresses of the last one's
    groups.

    Args:
        rank: Global rank of this process.
        world_size: Number of processes; one alone needs no store.
    """
    if world_size == 1:
        yield from itertools.repeat(None)
    store = _torchrun_store(rank, world_size, datetime.timedelta(seconds=START_SECONDS))
    for index in itertools.count():
        yield PrefixStore(f"job_{index}", store)


def connect(
    *,
    rank: int,
    world_size: int,
    timeout_seconds: float,
    store: Store | None = None,
    start_seconds: float = START_SECONDS,
) -> Agreement:
    """Connects to the other ranks to agree with them, outside the jobs that they join and leave.

    Args:
        rank: Global rank of this process.
        world_size: Number of processes that connect.
        timeout_seconds: Longest wait in any collective of a job; agreeing may take longer.
        store: Rendezvous; None uses torchrun's (MASTER_ADDR); one process needs none.
        start_seconds: How long to wait for ranks that start late, if the timeout is not longer.

    Raises:
        ParallelError: The other ranks could not be reached in time.
    """
    patience = datetime.timedelta(seconds=max(timeout_seconds, start_seconds))
    with _reaching(rank, world_size, patience):
        if store is None and world_size > 1:
            store = PrefixStore("connect", _torchrun_store(rank, world_size, patience))
        if store is not None:
            _wait_for_all(store, world_size, patience)
        return _agreement(store or HashStore(), rank, world_size, timeout_seconds)


def join(
    layout: ParallelLayout,
    *,
    rank: int,
    local_rank: int,
    store: Store | None = None,
    backend: str | None = None,
    start_seconds: float = START_SECONDS,
    agreement: Agreement | None = None,
) -> Ranks:
    """Connects to the other ranks and makes every process group, each with the layout's timeout.

    Before that, all ranks must agree on layout, code, libraries and kernels: groups made from
    different layouts would wait for each other.

    Args:
        layout: The checked layout; its world size is the number of processes that join.
        rank: Global rank of this process.
        local_rank: Its index on this host, which selects the GPU.
        store: Rendezvous; None uses torchrun's (MASTER_ADDR); one process needs none.
        backend: None uses nccl on CUDA and gloo elsewhere; planning passes `fake`.
        start_seconds: How long to wait for ranks that start late, if the timeout is not longer.
        agreement: From `connect`, for these ranks; None makes one.

    Raises:
        ConfigError: The ranks do not agree.
        ParallelError: The other ranks could not be reached in time.
    """
    device = local_device(local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    patience = datetime.timedelta(seconds=max(layout.config.timeout_seconds, start_seconds))
    with _reaching(rank, layout.world_size, patience):
        if layout.world_size == 1:
            store = store or HashStore()
        elif backend != "fake":
            store = store or _torchrun_store(rank, layout.world_size, patience)
            _wait_for_all(store, layout.world_size, patience)
        if agreement is None and backend != "fake" and store is not None:
            own = PrefixStore("agreement", store)
            timeout_seconds = layout.config.timeout_seconds
            agreement = _agreement(own, rank, layout.world_size, timeout_seconds)
        agreement = agreement or Agreement()
    if agreement.size > 1:
        agreement.require_same(_facts(layout, device))
    with _reaching(rank, layout.world_size, patience):
        _make_groups(layout, rank, store, backend or collectives(device))
    return Ranks(
        layout=layout,
        rank=rank,
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        data_rank=parallel_state.get_data_parallel_rank(),
        tensor_group=cast(dist.ProcessGroup, parallel_state.get_tensor_model_parallel_group()),
        pipeline_group=cast(dist.ProcessGroup, parallel_state.get_pipeline_model_parallel_group()),
        data_group=cast(dist.ProcessGroup, parallel_state.get_data_parallel_group()),
        agreement=agreement,
        device=device,
    )


def collectives(device: torch.device) -> str:
    """Name of the library that moves tensors between ranks on such devices."""
    return "nccl" if device.type == "cuda" else "gloo"


def _facts(layout: ParallelLayout, device: torch.device) -> dict[str, Any]:
    settings = dataclasses.asdict(layout.config)
    facts: dict[str, Any] = {f"parallel.{name}": value for name, value in settings.items()}
    return facts | {"layers of each stage": layout.layers_per_chunk} | versions(device)


@contextlib.contextmanager
def _reaching(rank: int, world_size: int, patience: datetime.timedelta) -> Iterator[None]:
    try:
        yield
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise ParallelError(
            f"rank {rank} of {world_size} could not join the job within "
            f"{patience.total_seconds():g} s: {str(error).splitlines()[0]}. Check that all ranks "
            "started and that MASTER_ADDR and MASTER_PORT can be reached from each host."
        ) from error


def _agreement(store: Store, rank: int, world_size: int, timeout_seconds: float) -> Agreement:
    _stay_on_loopback(world_size)
    # Ranks wait here while one writes or hashes its share of a checkpoint on a slow disk.
    timeout = datetime.timedelta(seconds=AGREEMENT_PATIENCE * timeout_seconds)
    group = dist.ProcessGroupGloo(store, rank, world_size, timeout)
    return Agreement(cast(dist.ProcessGroup, group))  # it has the same collectives


def _torchrun_store(rank: int, world_size: int, patience: datetime.timedelta) -> Store:
    store, _, _ = next(rendezvous("env://", rank=rank, world_size=world_size, timeout=patience))
    return store


def _wait_for_all(store: Store, world_size: int, patience: datetime.timedelta) -> None:
    """Returns when all ranks have started: a slow start may exceed the timeout of collectives."""
    if store.add("started", 1) == world_size:
        store.set("all_started", "")
    store.wait(["all_started"], patience)


def _make_groups(layout: ParallelLayout, rank: int, store: Store | None, backend: str) -> None:
    """Makes torch's default group and megatron-core's groups."""
    timeout = datetime.timedelta(seconds=layout.config.timeout_seconds)
    _stay_on_loopback(layout.world_size)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=layout.world_size, timeout=timeout
    )
    stages = layout.virtual_pipeline_parallel_size
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_parallel_size,
        virtual_pipeline_model_parallel_size=stages if stages > 1 else None,
        # The timeout of init_process_group does not reach megatron-core's own groups, which take
        # fractions of a minute too.
        distributed_timeout_minutes=cast(int, layout.config.timeout_seconds / 60),
        create_gloo_process_groups=False,
    )


def _stay_on_loopback(world_size: int) -> None:
    """Keeps a job of one host on its loopback interface.

    Gloo listens on the address of the host's name otherwise, even for one process, and both
    libraries take names from the environment alone.
    """
    if world_size != int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        return
    names = {name for _, name in socket.if_nameindex()}
    loopback = "lo" if "lo" in names else "lo0"  # Linux, macOS
    os.environ["GLOO_SOCKET_IFNAME"] = loopback
    os.environ["NCCL_SOCKET_IFNAME"] = f"={loopback}"  # the whole name, not a prefix


@contextlib.contextmanager
def peers_may_fail(doing: str) -> Iterator[None]:
    """Turns the error of a collective whose peer died or hung into a ParallelError.

    Args:
        doing: What the block does, for the message.

    Raises:
        ParallelError: A collective failed; torch's error is its cause.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        is_lost = isinstance(error, dist.DistError) or any(s in text for s in _LOST_PEER)
        if not is_lost or is_gpu_out_of_memory(error):  # NCCL may be what could not allocate
            raise
        raise ParallelError(
            f"a peer was lost while {doing}: {text.splitlines()[0]}. Committed checkpoints are "
            "intact; start the same command again. The peer's own message says why it ended; if "
            "it was only slow, raise --parallel.timeout_seconds."
        ) from error


def leave() -> None:
    """Closes every process group; safe to call twice or before `join`."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def release_memory() -> None:
    """Frees the memory of a job that this process has left, before it joins the next one."""
    gc.collect()  # wrapped models are in cycles
    if uses_cuda():
        torch.cuda.empty_cache()
