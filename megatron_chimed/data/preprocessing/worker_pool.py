"""Worker processes that turn blocks into encoded blocks, in order and in bounded memory."""

import functools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextvars import ContextVar

from megatron_chimed.data.preprocessing.block_encoder import BlockEncoder, EncodedBlock, Recipe
from megatron_chimed.data.reading import RowBlock
from megatron_chimed.errors import ParallelError
from megatron_chimed.tokenizer import Tokenizer

BLOCKS_PER_WORKER = 3  # in flight: one being encoded and two to hide the parent's delays
MAX_BYTES_IN_FLIGHT = 32 << 20
LARGE_BYTES = 4 << 20  # a block of one long row, of which transfer would hold several copies
# Set once per worker: sending it with each block would resend the list of inputs every time.
_RECIPE: ContextVar[Recipe] = ContextVar("recipe")


def encode_blocks(
    blocks: Iterable[RowBlock], recipe: Recipe, workers: int, tokenizer: Tokenizer | None = None
) -> Generator[EncodedBlock, None, None]:
    """Encodes blocks in parallel and yields them in order, with a bounded number in flight.

    A block of over `LARGE_BYTES` is encoded in this process, while the workers are idle.

    Args:
        blocks: Blocks of the recipe's inputs.
        recipe: What to do.
        workers: Number of processes; 1 encodes in this process.
        tokenizer: The recipe's tokenizer for what is encoded in this process; None: it is loaded.

    Raises:
        ParallelError: A worker was killed.
    """
    if workers == 1:
        yield from map(BlockEncoder(recipe, tokenizer).encode, blocks)
        return
    encode_here = functools.cache(functools.partial(BlockEncoder, recipe, tokenizer))
    context = multiprocessing.get_context("spawn")  # fork would copy locks that threads hold
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(recipe,)
    ) as pool:
        pending: deque[tuple[int, Future[EncodedBlock]]] = deque()
        try:
            for block in blocks:
                is_large = len(block.data) > LARGE_BYTES
                while pending and (is_large or not _has_room(pending, len(block.data), workers)):
                    yield pending.popleft()[1].result()
                if is_large:
                    yield encode_here().encode(block)
                    continue
                pending.append((len(block.data), pool.submit(_encode_block, block)))
            while pending:
                yield pending.popleft()[1].result()
        except BrokenProcessPool:
            raise ParallelError(
                f"one of {workers} worker processes was killed, most often for lack of memory. "
                "The output is incomplete and was not published. Run the same command again to "
                "resume from the last saved block, with fewer --workers if memory is short."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _has_room(pending: deque[tuple[int, Future]], size: int, workers: int) -> bool:
    in_flight = sum(bytes_ for bytes_, _ in pending)
    return len(pending) < BLOCKS_PER_WORKER * workers and in_flight + size <= MAX_BYTES_IN_FLIGHT


def _encode_block(block: RowBlock) -> EncodedBlock:
    return _encoder().encode(block)


@functools.cache
def _encoder() -> BlockEncoder:
    """One per worker process: loading a tokenizer takes longer than encoding a block."""
    return BlockEncoder(_RECIPE.get())


def _start_worker(recipe: Recipe) -> None:
    _RECIPE.set(recipe)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is the parent's to handle
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Without this, a worker would wait forever for work from a parent that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers are started by multiprocessing"
    parent.join()
    os._exit(1)
