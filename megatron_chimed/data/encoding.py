"""What one worker does: the lines of a block to the token ids of its documents."""

import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np

from megatron_chimed.data.blocks import Block
from megatron_chimed.data.indexed import dtype_for_vocab
from megatron_chimed.data.rows import ParsedBlock, parse_block
from megatron_chimed.errors import ParallelError
from megatron_chimed.tokenizer import load_tokenizer

BLOCKS_PER_WORKER = 3  # in flight: one at work and two to hide the parent's delays


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How lines become ids; the same in every worker."""

    tokenizer: str
    """Path for `load_tokenizer`."""

    formats: tuple[str, ...]
    """Format of each input file."""

    text_key: str
    """Key of the text in JSON rows."""

    append_eod: bool
    """Whether each document ends with the tokenizer's end of sequence."""


@dataclass(frozen=True, kw_only=True)
class EncodedBlock:
    """The documents of one block."""

    rows: ParsedBlock
    """Counts and malformed rows; its texts are gone."""

    tokens: np.ndarray
    """Ids of all documents, one after another."""

    lengths: np.ndarray
    """int32 `[documents]`, their numbers of tokens."""


class BlockEncoder:
    """Encodes blocks; holds the tokenizer.

    Args:
        recipe: What to do.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.tokenizer = load_tokenizer(recipe.tokenizer)
        self.dtype = dtype_for_vocab(self.tokenizer.vocab_size)

    def encode(self, block: Block) -> EncodedBlock:
        """The block's documents; malformed rows are listed, never raised."""
        rows = parse_block(block, self.recipe.formats[block.file], self.recipe.text_key)
        documents = [ids for ids in self.tokenizer.encode_batch(rows.texts) if ids]
        # A text of what normalisation removes, such as a lone zero-width space, leaves no id.
        rows.empty += len(rows.texts) - len(documents)
        rows.texts.clear()
        if self.recipe.append_eod:
            for ids in documents:
                ids.append(self.tokenizer.eos_id)
        lengths = np.array([len(ids) for ids in documents], np.int32)
        tokens = np.fromiter(itertools.chain.from_iterable(documents), self.dtype, lengths.sum())
        return EncodedBlock(rows=rows, tokens=tokens, lengths=lengths)


def encode_blocks(blocks: Iterable[Block], recipe: Recipe, workers: int) -> Iterator[EncodedBlock]:
    """Encodes blocks in parallel and yields them in their order, a bounded number in flight.

    Args:
        blocks: From `iter_blocks`.
        recipe: What to do.
        workers: Processes; 1 works in this one.

    Raises:
        ParallelError: A worker was killed.
    """
    if workers == 1:
        yield from map(BlockEncoder(recipe).encode, blocks)
        return
    context = multiprocessing.get_context("spawn")  # fork would copy locks that threads hold
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        pending: deque[Future[EncodedBlock]] = deque()
        try:
            for block in blocks:
                pending.append(pool.submit(_encode_block, recipe, block))
                if len(pending) >= BLOCKS_PER_WORKER * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise ParallelError(
                f"one of {workers} worker processes was killed, most often for lack of memory. "
                "Nothing was written; try again with fewer --workers."
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _encode_block(recipe: Recipe, block: Block) -> EncodedBlock:
    return _encoder(recipe).encode(block)


@functools.lru_cache(maxsize=1)
def _encoder(recipe: Recipe) -> BlockEncoder:
    """One per worker process: loading a tokenizer takes longer than encoding a block."""
    return BlockEncoder(recipe)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is the parent's to handle
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """A pool's worker would wait for ever for work from a parent that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers are started by multiprocessing"
    parent.join()
    os._exit(1)
