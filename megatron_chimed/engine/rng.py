"""Random streams of a rank: seeded from the layout, kept in a checkpoint."""

import base64
import contextlib
from collections.abc import Iterator, Mapping

import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker, model_parallel_cuda_manual_seed

from megatron_chimed.engine.ranks import Ranks


def seed_ranks(seed: int, ranks: Ranks) -> None:
    """Seeds dropout: equal over tensor-parallel ranks where activations are, different elsewhere.

    Weights do not depend on it (they are drawn by name), nor does the order of the data.
    """
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed + 100 * ranks.pipeline_rank + 10_000 * ranks.data_rank)


@contextlib.contextmanager
def one_stream() -> Iterator[None]:
    """Lets all dropout draw from the default generator: fake tensors have no state to switch."""
    tracker = get_cuda_rng_tracker()
    tracker.fork = contextlib.nullcontext
    try:
        yield
    finally:
        del tracker.fork


def rng_state() -> dict[str, str]:
    """This rank's generator states as base64 text: torch's, CUDA's and megatron-core's streams.

    Python's and numpy's global generators are never drawn from during training.
    """
    states = {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state()}
    states |= {f"tracker.{n}": s for n, s in get_cuda_rng_tracker().get_states().items()}
    return {
        name: base64.b64encode(bytes(state.cpu().tolist())).decode("ascii")
        for name, state in states.items()
    }


def set_rng_state(states: Mapping[str, str]) -> None:
    """Takes back what `rng_state` gave."""
    tensors = {
        name: torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)
        for name, text in states.items()
    }
    torch.set_rng_state(tensors["torch"])
    torch.cuda.set_rng_state(tensors["cuda"])
    tracker = get_cuda_rng_tracker()
    tracker.set_states(
        {name.removeprefix("tracker."): s for name, s in tensors.items() if "tracker." in name}
    )
