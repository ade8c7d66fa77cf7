"""Fetching samples, compared with megatron-core's GPTDataset, and packing a million lengths.

    python benchmarks/fetch.py
    python benchmarks/fetch.py --documents 1000000 --seq-length 8192

Both sides read the same token files by the same indices, megatron-core's own; the arrays of the
first samples must be equal before a figure is printed. Samples are fetched one by one, as a loader
does, from the page cache; what GPTDataset may cache between samples, it caches. Process time of one
thread, variants in turns; ratios are medians over rounds, with their 20th and 80th percentiles.
Lengths are drawn: documents from a gamma distribution of mean 233 tokens, conversations from a
mixture of lognormals. Results go to bench_out/fetch.json.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timing
import torch

from megatron_chimed.command_line import CommandParser
from megatron_chimed.data.datasets.indexed import IndexedDataset
from megatron_chimed.data.datasets.native import pack
from megatron_chimed.data.datasets.pretrain import AtEod, PretrainDataset
from megatron_chimed.data.datasets.sidecar import Sidecar
from megatron_chimed.data.preprocessing.writer import IndexedWriter
from megatron_chimed.errors import NumericError, run_command
from megatron_chimed.files import write_json

VOCAB_SIZE, EOD = 30000, 2
KEYS = ("tokens", "labels", "loss_mask", "position_ids")
CHECKED_SAMPLES = 100
# name -> options of both sides, goal
VARIANTS = {
    "plain": ({}, 3.0),
    "eod_mask_loss": ({"eod_mask_loss": True}, 3.0),
    "reset_position_ids": ({"reset_position_ids": True}, 5.0),
    "both": ({"eod_mask_loss": True, "reset_position_ids": True}, 5.0),
}
PACKED_LENGTHS, PACK_CAPACITIES = 1_000_000, (2048, 4096, 8192)


@dataclass(frozen=True)
class _MegatronIndices:
    """The indices of an epoch that GPTDataset built, as a `PretrainDataset` reads them."""

    documents: np.ndarray
    rows: np.ndarray
    samples: np.ndarray


class _Tokenizer:
    """The tokenizer interface that GPTDataset needs; no id is padding."""

    vocab_size, eod, pad = VOCAB_SIZE, EOD, -1
    unique_identifiers = {"class": "none"}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    options = _parser().parse_args(argv)
    warnings.simplefilter("ignore")  # megatron-core's, about what it was not built with
    torch.set_num_threads(1)
    facts = timing.machine("cpu") | {"command": " ".join(sys.argv)}
    for name, value in facts.items():
        print(f"{name}: {value}")
    with tempfile.TemporaryDirectory() as folder:
        prefix = _write_documents(Path(folder), options)
        fetched = [_measure_fetch(prefix, name, options) for name in VARIANTS]
    packed = [measure_packing(capacity, options.rounds) for capacity in PACK_CAPACITIES]
    output = options.output / "fetch.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, {"machine": facts, "fetch": fetched, "packing": packed})
    print(f"\nwritten to {output}")
    return 0


def _write_documents(folder: Path, options: argparse.Namespace) -> Path:
    generator = np.random.default_rng(options.seed)
    lengths = np.maximum(generator.gamma(1.2, 233 / 1.2, options.documents), 1).astype(np.int32)
    ids = generator.integers(3, VOCAB_SIZE, lengths.sum()).astype(np.uint16)
    ids[np.cumsum(lengths) - 1] = EOD
    with IndexedWriter(folder / "data", np.uint16) as writer:
        writer.add_documents(ids, lengths)
        writer.finalize(
            lambda bin_sha256, idx_sha256: Sidecar(
                stage="pretrain",
                tokenizer_name="none",
                tokenizer_sha256="none",
                vocab_size=VOCAB_SIZE,
                eod_id=EOD,
                max_token_id=writer.max_token_id,
                dtype="uint16",
                sequences=writer.sequences,
                documents=writer.documents,
                tokens=writer.tokens,
                bin_sha256=bin_sha256,
                idx_sha256=idx_sha256,
                sources=(),
                command="",
            )
        )
    size = ids.nbytes / 1e6
    print(f"{options.documents} documents, {size:.0f} MB of ids, sequence {options.seq_length}")
    return folder / "data"


def _measure_fetch(prefix: Path, name: str, options: argparse.Namespace) -> dict[str, Any]:
    settings, goal = VARIANTS[name]
    stock = _stock_dataset(prefix, options.seq_length, **settings)
    ours = _our_dataset(prefix, stock, options.seq_length, **settings)
    for index in range(min(CHECKED_SAMPLES, len(stock))):
        expected, found = stock[index], ours[index]
        if not all(np.array_equal(expected[key].numpy(), found[key]) for key in KEYS):
            raise NumericError(f"sample {index} of {name} differs: nothing is timed.")
    sides = {
        "ours": _fetch(ours, len(stock), options),
        "theirs": _fetch(stock, len(stock), options),
    }
    times = timing.interleave(sides, device="cpu", rounds=options.rounds)
    ratio = timing.paired_ratio(times["ours"], times["theirs"])
    rates = {side: options.samples / spread.median * 1e3 for side, spread in times.items()}
    print(
        f"{name:20} ours {rates['ours']:8.0f} samples/CPU-s, GPTDataset {rates['theirs']:8.0f}, "
        f"{ratio.median:.2f}x ({ratio.low:.2f}-{ratio.high:.2f}), goal {goal:g}x",
        flush=True,
    )
    return {
        "variant": name,
        "samples_per_cpu_second": rates,
        "milliseconds": {side: timing.as_json(spread) for side, spread in times.items()},
        "ratio": timing.as_json(ratio),
        "goal": goal,
    }


def _stock_dataset(prefix: Path, seq_length: int, **settings: bool) -> Any:
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split

    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=seq_length,
        split="1,0,0",
        tokenizer=_Tokenizer(),
        reset_attention_mask=False,
        create_attention_mask=False,
        path_to_cache=str(prefix.parent / "cache"),
        mid_level_dataset_surplus=0.005,
        **{"eod_mask_loss": False, "reset_position_ids": False, **settings},
    )
    tokens = GPTDataset.build_low_level_dataset(str(prefix), config)
    documents = np.arange(len(tokens.sequence_lengths), dtype=np.int32)
    return GPTDataset(tokens, str(prefix), documents, None, Split.train, config)


def _our_dataset(prefix: Path, stock: Any, seq_length: int, **settings: bool) -> PretrainDataset:
    indexed = IndexedDataset(prefix)
    at_eod = AtEod(
        eod_id=EOD,
        reset_position_ids=settings.get("reset_position_ids", False),
        mask_loss=settings.get("eod_mask_loss", False),
    )
    documents = (0, indexed.num_documents)
    dataset = PretrainDataset(
        indexed, documents=documents, seq_length=seq_length, seed=0, at_eod=at_eod
    )
    indices = _MegatronIndices(stock.document_index, stock.sample_index, stock.shuffle_index)
    dataset._epoch = lambda number: indices
    return dataset


def _fetch(dataset: Any, size: int, options: argparse.Namespace) -> Callable[[int], None]:
    def run(number: int) -> None:
        first = number * options.samples
        for index in range(first, first + options.samples):
            dataset[index % size]

    return run


def measure_packing(capacity: int, rounds: int) -> dict[str, Any]:
    """Time and padding of packing a million lengths."""
    generator = np.random.default_rng(0)
    medians = generator.choice([180, 700, 1800], PACKED_LENGTHS, p=[0.7, 0.25, 0.05])
    drawn = medians * np.exp(generator.normal(0, 0.6, PACKED_LENGTHS))
    lengths = np.clip(np.round(drawn), 1, capacity).astype(np.int32)
    packs = len(pack(lengths, capacity)[1]) - 1
    padding = 1 - lengths.sum(dtype=np.int64) / (packs * capacity)
    times = timing.interleave(
        {"pack": lambda _: pack(lengths, capacity)}, device="cpu", rounds=rounds
    )["pack"]
    print(
        f"packing {PACKED_LENGTHS} lengths into {capacity}: {times.median:.0f} ms "
        f"({times.low:.0f}-{times.high:.0f}), {padding:.4%} padding; goal 100 ms, 0.05%"
    )
    return {"capacity": capacity, "milliseconds": timing.as_json(times), "padding": padding}


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="fetch.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--documents", type=timing.at_least_one, default=200_000, help="documents (200000)"
    )
    parser.add_argument(
        "--seq-length", type=timing.at_least_one, default=4096, help="tokens per sample (4096)"
    )
    parser.add_argument(
        "--samples", type=timing.at_least_one, default=500, help="samples of a round (500)"
    )
    parser.add_argument("--rounds", type=timing.at_least_one, default=9, help="measured rounds (9)")
    parser.add_argument("--seed", type=int, default=0, help="of the documents (0)")
    parser.add_argument(
        "--output", type=Path, default=Path("bench_out"), help="folder of the result (bench_out)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
