"""Random streams of a rank: seeded from the layout, kept in a checkpoint."""

import base64
import contextlib
from collections.abc import Iterator, Mapping
from typing import cast

import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker, model_parallel_cuda_manual_seed
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

from megatron_chimed.engine.ranks import Ranks


def seed_ranks(seed: int, ranks: Ranks) -> None:
    """Seeds dropout: equal on tensor-parallel ranks where activations are equal, else different.

    Weights do not depend on it (they are drawn by name), and neither does the order of the data.
    """
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed + 100 * ranks.pipeline_rank + 10_000 * ranks.data_rank)


@contextlib.contextmanager
def one_stream() -> Iterator[None]:
    """Makes all dropout use the default generator: fake tensors have no state to switch."""
    attributes = vars(_tracker())
    attributes["fork"] = contextlib.nullcontext
    try:
        yield
    finally:
        del attributes["fork"]


def tensor_parallel_stream() -> contextlib.AbstractContextManager:
    """Draws from a random stream that differs between tensor-parallel ranks."""
    return _tracker().fork()


def rng_state() -> dict[str, str]:
    """This rank's generator states as base64 text: torch's, CUDA's and megatron-core's streams.

    Training never uses the global generators of Python and numpy.
    """
    states = {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state()}
    states |= {f"tracker.{n}": s for n, s in _tracker().get_states().items()}
    return {
        name: base64.b64encode(bytes(state.cpu().tolist())).decode("ascii")
        for name, state in states.items()
    }


def set_rng_state(states: Mapping[str, str]) -> None:
    """Restores a result of `rng_state`."""
    tensors = {
        name: torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)
        for name, text in states.items()
    }
    torch.set_rng_state(tensors["torch"])
    torch.cuda.set_rng_state(tensors["cuda"])
    _tracker().set_states(
        {name.removeprefix("tracker."): s for name, s in tensors.items() if "tracker." in name}
    )


def _tracker() -> CudaRNGStatesTracker:
    tracker = get_cuda_rng_tracker()
    assert tracker is not None, "megatron-core makes it on first use"
    return cast(CudaRNGStatesTracker, tracker)
