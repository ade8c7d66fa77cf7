"""Runs all measures on all models; what is finished is kept, and a killed job resumes."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_chimed.errors import ConfigError
from megatron_chimed.evaluation.config import EvaluationConfig, ModelEntry
from megatron_chimed.evaluation.figures import MeasuredItem
from megatron_chimed.evaluation.item_store import ItemStore, block_line
from megatron_chimed.evaluation.measures import Measure, identity_of, measured
from megatron_chimed.evaluation.models.asking import ask
from megatron_chimed.evaluation.models.opening import open_model, source_identity
from megatron_chimed.evaluation.requests import EvaluatedModel
from megatron_chimed.generation.workers import Workers

BLOCK = 64
"""Items that are asked together. It decides what shares a forward pass, and so the last bits of
log-probabilities: it never changes, whatever the layout."""


def run_measures(
    config: EvaluationConfig, measures: Sequence[Measure], workers: Workers
) -> dict[str, dict[str, list[MeasuredItem]]]:
    """Measures every model; every rank calls it.

    Returns:
        On rank 0 the items by model and measure; empty on other ranks.

    Raises:
        ConfigError: The output folder holds results of other models, tasks or settings.
        ChimedError: A model cannot be opened, or fails.
    """
    results: dict[str, dict[str, list[MeasuredItem]]] = {}
    for entry in config.models:
        stores = _stores(config, entry, measures)
        finished = workers.on_rank_0(
            lambda stores=stores: [name for name, store in stores.items() if store.is_finished()]
        )
        todo = [measure for measure in measures if measure.name not in finished]
        if todo:
            with open_model(entry, config, workers) as model:
                for measure in todo:
                    _run_measure(model, entry, measure, stores[measure.name], workers)
        if workers.rank == 0:
            results[entry.name] = {name: store.read() for name, store in stores.items()}
    return results


def _stores(
    config: EvaluationConfig, entry: ModelEntry, measures: Sequence[Measure]
) -> dict[str, ItemStore]:
    identity: dict[str, Any] = source_identity(entry, config)
    return {
        measure.name: ItemStore(
            Path(config.output_dir),
            entry.name,
            measure.name,
            {**identity, "task": identity_of(measure)},
        )
        for measure in measures
    }


def _run_measure(
    model: EvaluatedModel, entry: ModelEntry, measure: Measure, store: ItemStore, workers: Workers
) -> None:
    """Measures one model in one way, from the first block that is not finished."""
    count = len(measure.entries)
    blocks = [range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
    kept = store.finished_blocks() if workers.rank == 0 else []
    skipped: int = workers.on_rank_0(lambda: len(kept))
    if skipped > len(blocks):
        raise ConfigError(f"{entry.name}, {measure.name}: more blocks are kept than there are.")
    items = [item for block in kept for item in block]
    workers.print(f"{entry.name}: {measure.title}: {count:,} items")
    started = time.monotonic()
    if workers.rank:
        for indices in blocks[skipped:]:
            _ask(model, measure, indices)
        return
    asked = 0
    with store.writing() as journal:
        for indices in blocks[skipped:]:
            block = _ask(model, measure, indices)
            journal.write(block_line(block))
            items += block
            asked += len(block)
            _show_progress(len(items), count, asked, started)
    store.finish(items)


def _show_progress(done: int, count: int, asked: int, started: float) -> None:
    seconds = time.monotonic() - started
    rate = asked / seconds if seconds else 0.0
    left = (count - done) / rate if rate else 0.0
    print(f"  {done:,} of {count:,}, {rate:.1f} items/s, {left:.0f} s left", flush=True)


def _ask(model: EvaluatedModel, measure: Measure, indices: range) -> list[MeasuredItem]:
    """What becomes of a block of items; every rank calls it."""
    responses = ask(model, [measure.entries[index].request for index in indices])
    return [
        measured(measure, index, response)
        for index, response in zip(indices, responses, strict=True)
    ]
