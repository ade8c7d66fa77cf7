"""Reads samples ahead of the training step, in one thread, and checks every token id.

A thread is enough: reading a sample copies a few slices of a mapped file, which takes about 0.02
ms, mostly without the GIL; and no extra process can outlive or deadlock the job.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterable

import numpy as np

from megatron_chimed.data.datasets.blend import SampleSource
from megatron_chimed.errors import DataError

POLL_SECONDS = 0.1  # the thread notices within this time that reading has stopped

Batch = dict[str, np.ndarray]


def iterate_batches(
    dataset: SampleSource,
    steps: Iterable[list[list[int]]],
    *,
    vocab_size: int,
    prefetch: int = 2,
) -> Generator[list[Batch], None, None]:
    """Yields the collated micro-batches of each step; close the generator to stop reading.

    Args:
        dataset: The source of the samples.
        steps: Sample indices, as yielded by `MicroBatchSampler`.
        vocab_size: Ids must be below it.
        prefetch: Steps to read ahead; 0 reads in the caller's thread.

    Yields:
        Per micro-batch: the sample's arrays as `[b, s]`, and `sample_index` int64 `[b]`.

    Raises:
        DataError: An id is out of range or a sample cannot be read; raised at its own step.
    """

    def load(step: list[list[int]]) -> list[Batch]:
        batches = [collate(dataset, indices) for indices in step]
        for batch in batches:
            check_token_range(batch, vocab_size, dataset.locate)
        return batches

    if prefetch == 0:
        yield from map(load, steps)
        return
    results: queue.Queue = queue.Queue(maxsize=prefetch)
    stopped = threading.Event()
    thread = threading.Thread(
        target=_produce, args=(load, steps, results, stopped), name="data-prefetch", daemon=True
    )
    thread.start()
    try:
        while (result := results.get()) is not None:
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        stopped.set()
        thread.join()


def collate(dataset: SampleSource, indices: list[int]) -> Batch:
    """Stacks samples: every array gains a leading dimension `b`."""
    samples = [dataset[index] for index in indices]
    batch = {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
    batch["sample_index"] = np.array(indices, np.int64)
    return batch


def check_token_range(
    batch: Batch, vocab_size: int, locate: Callable[[int], str] = lambda index: "unknown documents"
) -> None:
    """Refuses ids outside the vocabulary.

    A vocabulary-parallel embedding silently turns such an id into zeros.

    Args:
        batch: `tokens` and `labels` `[b, s]`, `sample_index` `[b]`.
        vocab_size: Ids must be in `[0, vocab_size)`.
        locate: Names the documents of a sample.

    Raises:
        DataError: An id is out of range; names sample, documents, position and id.
    """
    for name in ("tokens", "labels"):
        ids = batch[name]  # [b, s]
        if ids.min() >= 0 and ids.max() < vocab_size:
            continue
        row, position = np.argwhere((ids < 0) | (ids >= vocab_size))[0]
        index = int(batch["sample_index"][row])
        raise DataError(
            f"sample {index} ({locate(index)}): {name}[{position}] is {ids[row, position]}, "
            f"outside the vocabulary of {vocab_size}. The data were made with another tokenizer or "
            "are damaged: run tools/inspect_dataset.py check on them."
        )


def _produce(
    load: Callable[[list[list[int]]], list[Batch]],
    steps: Iterable[list[list[int]]],
    results: queue.Queue,
    stopped: threading.Event,
) -> None:
    try:
        for step in steps:
            if not _put(results, load(step), stopped):
                return
        _put(results, None, stopped)
    except BaseException as error:  # noqa: BLE001  (raised again in the caller's thread)
        _put(results, error, stopped)


def _put(results: queue.Queue, item: object, stopped: threading.Event) -> bool:
    """Waits for room; False if reading has stopped."""
    while not stopped.is_set():
        try:
            results.put(item, timeout=POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False
