"""Corpora to token files: our tool compared with a per-line pool of Python workers, equal outputs.

    python benchmarks/preprocess.py                      # 25 to 200 MB made from the real files
    python benchmarks/preprocess.py --megabytes 40 --documents 1000000 --rounds 1    # a short run
    python benchmarks/preprocess.py --real-data DIR      # folder of the real files

Both sides run as separate commands, in turns; their clocks include start-up, and that of one
document is shown alone. The baseline is `line_pool` in preprocess_commands.py. `.bin` and `.idx`
are compared byte by byte after every pair of runs, and nothing is printed if one differs. CPU time
is that of all processes of a command; wall time depends on what else the machine does. Memory is
the largest sum of PSS over a command's processes. The rest is of one process: encoding alone (more
in tokenizer.py), packing (more in fetch.py), and the index of many documents. Results go to
bench_out/preprocess.json.
"""

import argparse
import dataclasses
import filecmp
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fetch
import sentencepiece
import timing
import tokenizer
from preprocess_commands import Costs, measure_index, python_call, run_measured
from tokenizer_texts import make_corpus, make_models, read_real_texts

from megatron_chimed.command_line import CommandParser
from megatron_chimed.data.reading import iter_texts
from megatron_chimed.errors import ConfigError, DataError, run_command
from megatron_chimed.files import atomic_file, write_json

ROOT = Path(__file__).resolve().parent.parent
OURS, THEIRS = "ours", "line pool"
PARTS, SIZES = 8, (1, 2, 4, 8)  # the corpus is made in parts; the inputs are the first so many
WORKERS = (1, 2)
LLAMA = "llama2 32000"
# Those whose rows are texts or conversations; preference pairs are for another stage.
REAL_FILES = (
    "fever.txt",
    "medical_corpus.txt",
    "medical_sft_1K_format.jsonl",
    "CMtMedQA_test.json",
)
TOKENIZER_GOAL, SPEED_GOAL, MEMORY_GOAL = 3.5, 4.0, 300.0
PACK_GOAL_MS, PADDING_GOAL, INDEX_GOAL_SECONDS = 100.0, 0.0005, 60.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One input for both sides."""

    name: str
    """Name in the table."""

    inputs: tuple[Path, ...]
    """What our tool reads."""

    lines: Path
    """The same documents as JSON lines."""

    vocabulary: str
    """Name of the tokenizer."""

    model: Path
    """Its sentencepiece model."""

    workers: int
    """Worker processes of both sides."""

    rounds: int
    """Measured runs of each side."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    options = _parser().parse_args(argv)
    if not options.real_data.is_dir():
        raise ConfigError(f"--real-data {options.real_data} is no folder: nothing to measure on.")
    facts = timing.machine("cpu") | {
        "sentencepiece": sentencepiece.__version__,
        "command": " ".join(sys.argv),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        real = read_real_texts(options.real_data)
        models = _write_models(folder, options.real_data, real)
        parts = _make_parts(real, options)
        corpora = _write_corpora(folder, parts, options.real_data)
        cases = _cases(folder, corpora, models, options)
        results = {
            "end_to_end": _measure_cases(cases, folder),
            "index": measure_index(folder, options.documents),
        }
    facts["load_average_at_end"] = [round(x, 2) for x in os.getloadavg()]
    for key, value in facts.items():
        print(f"{key}: {value}")
    _print_cases(results["end_to_end"])
    _print_index(results["index"])
    print("\nencoding alone, one thread, MB/s per CPU-second and ratio to sentencepiece")
    llama = (options.real_data / "llama2_tokenizer.model").read_bytes()
    results["tokenizer"] = [
        tokenizer.measure(LLAMA, llama, name, part, 5)
        for name, part in {"real": real, "corpus": list(iter_texts(parts[:1]))}.items()
    ]
    print()
    results["packing"] = [fetch.measure_packing(capacity, 5) for capacity in fetch.PACK_CAPACITIES]
    results["goals"] = _print_goals(results)
    output = options.output / "preprocess.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, {"machine": facts, **results})
    print(f"\nwritten to {output}")
    return 0


def _write_models(folder: Path, real_data: Path, real: list[str]) -> dict[str, Path]:
    """The vocabularies of tokenizer.py, and a unigram one, which our C++ leaves to others."""
    models = make_models(real_data, real)
    models["unigram 20000"] = (real_data / "chinese_sp.model").read_bytes()
    paths = {}
    for number, (name, model) in enumerate(models.items()):
        paths[name] = folder / f"{number}.model"
        paths[name].write_bytes(model)
    return paths


def _write_corpora(
    folder: Path, parts: list[Path], real_data: Path
) -> dict[str, tuple[tuple[Path, ...], Path]]:
    """Inputs of both sides by name, smallest first."""
    files = tuple(real_data / name for name in REAL_FILES)
    _write_lines(folder / "real.jsonl", iter_texts(files))
    one = folder / "one.jsonl"
    _write_lines(one, itertools.islice(iter_texts([parts[0]]), 1))
    corpora = {"one document": ((one,), one), "real files": (files, folder / "real.jsonl")}
    for count in SIZES:
        path = folder / f"made-{count}.jsonl"
        with open(path, "wb") as stream:
            for part in parts[:count]:
                stream.write(part.read_bytes())
        corpora[f"made, {path.stat().st_size / 1e6:.3g} MB"] = ((path,), path)
    return corpora


def _make_parts(real: list[str], options: argparse.Namespace) -> list[Path]:
    """The corpus; making it takes a minute or two, so it is kept beside the results."""
    folder = options.output / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    size, seeds = options.megabytes / PARTS, range(options.seed, options.seed + PARTS)
    paths = [folder / f"{size:g}MB-seed{seed}.jsonl" for seed in seeds]
    missing = [
        (real, size, *pair) for pair in zip(seeds, paths, strict=True) if not pair[1].exists()
    ]
    with multiprocessing.get_context("fork").Pool() as pool:
        pool.starmap(_make_part, missing, 1)
    return paths


def _make_part(real: list[str], megabytes: float, seed: int, path: Path) -> None:
    with atomic_file(path) as temporary:
        _write_lines(temporary, make_corpus(real, megabytes, seed=seed))


def _write_lines(path: Path, texts: Iterable[str]) -> None:
    with open(path, "w", encoding="utf-8") as stream:
        for text in texts:
            stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def _cases(
    folder: Path,
    corpora: dict[str, tuple[tuple[Path, ...], Path]],
    models: dict[str, Path],
    options: argparse.Namespace,
) -> list[Case]:
    """Input size and workers with one vocabulary, the other vocabularies on the smallest size."""
    names = list(corpora)
    made = names[-len(SIZES) :]
    chosen = [(name, LLAMA, workers) for name in names for workers in WORKERS]
    chosen += [(made[0], name, 1) for name in models if name != LLAMA]
    cases = []
    for name, vocabulary, workers in chosen:
        inputs, lines = corpora[name]
        cases.append(
            Case(
                name=name,
                inputs=inputs,
                lines=lines,
                vocabulary=vocabulary,
                model=models[vocabulary],
                workers=workers,
                rounds=1 if name in made[:-1] else options.rounds,
            )
        )
    return cases


def _measure_cases(cases: list[Case], folder: Path) -> list[dict[str, Any]]:
    runs: list[dict[str, list[Costs]]] = [{OURS: [], THEIRS: []} for _ in cases]
    tokens = [0] * len(cases)
    for number in range(max(case.rounds for case in cases)):
        for place, case in enumerate(cases):
            if number >= case.rounds:
                continue
            print(f"{case.name}, {case.vocabulary}, workers {case.workers}", file=sys.stderr)
            for side in (OURS, THEIRS) if number % 2 == 0 else (THEIRS, OURS):
                runs[place][side].append(run_measured(_command(case, side, folder)))
            tokens[place] = _compare(case, folder)
    return [
        _summary(case, count, costs) for case, count, costs in zip(cases, tokens, runs, strict=True)
    ]


def _command(case: Case, side: str, folder: Path) -> list[str]:
    prefix = str(folder / side)
    if side == THEIRS:
        return python_call("line_pool", case.lines, case.model, prefix, case.workers)
    tool = str(ROOT / "tools" / "preprocess_data.py")
    command = [sys.executable, tool, "--input", *map(str, case.inputs)]
    command += ["--tokenizer", str(case.model), "--output-prefix", prefix]
    return [*command, "--workers", str(case.workers)]


def _compare(case: Case, folder: Path) -> int:
    """Raises unless both outputs are equal; removes them and returns the tokens in them."""
    for suffix in (".bin", ".idx"):
        pair = [folder / f"{side}{suffix}" for side in (OURS, THEIRS)]
        if not filecmp.cmp(*pair, shallow=False):
            raise DataError(
                f"{suffix} files of {case.name} with {case.vocabulary} and {case.workers} workers "
                "differ: no time is worth anything."
            )
    tokens = (folder / f"{OURS}.bin").stat().st_size // 2
    for side in (OURS, THEIRS):
        for path in folder.glob(f"{side}.*"):
            path.unlink()
    return tokens


def _summary(case: Case, tokens: int, costs: dict[str, list[Costs]]) -> dict[str, Any]:
    pairs = list(zip(costs[OURS], costs[THEIRS], strict=True))
    return {
        "input": case.name,
        "vocabulary": case.vocabulary,
        "workers": case.workers,
        "megabytes": sum(path.stat().st_size for path in case.inputs) / 1e6,
        "documents": sum(1 for _ in open(case.lines, "rb")),
        "tokens": tokens,
        "runs": {side: list(map(dataclasses.asdict, made)) for side, made in costs.items()},
        "wall_ratios": [theirs.wall_seconds / ours.wall_seconds for ours, theirs in pairs],
        "cpu_ratios": [theirs.cpu_seconds / ours.cpu_seconds for ours, theirs in pairs],
    }


def _print_cases(rows: list[dict[str, Any]]) -> None:
    print(
        f"\n{'input':18}{'vocabulary':19}{'workers':>7} {'side':10}{'wall s':>7}{'CPU s':>7}"
        f"{'MB/s':>7}{'MB/CPU-s':>9}{'Mtok/s':>7}{'PSS MB':>7}{'RSS MB':>7}  times as fast"
    )
    for row in rows:
        for side, runs in row["runs"].items():
            wall, cpu = (_median(runs, name) for name in ("wall_seconds", "cpu_seconds"))
            pss, rss = (max(run[name] for run in runs) / 1e6 for name in ("peak_pss", "peak_rss"))
            ratios = ""
            if side == OURS:
                ratios = f"  wall {_spread(row['wall_ratios'])}, CPU {_spread(row['cpu_ratios'])}"
            print(
                f"{row['input']:18}{row['vocabulary']:19}{row['workers']:7} {side:10}{wall:7.2f}"
                f"{cpu:7.2f}{row['megabytes'] / wall:7.1f}{row['megabytes'] / cpu:9.1f}"
                f"{row['tokens'] / wall / 1e6:7.2f}{pss:7.0f}{rss:7.0f}{ratios}"
            )


def _print_index(index: dict[str, Any]) -> None:
    print(f"\nindex of {index['documents']:,} documents, {index['bytes'] / 1e6:,.0f} MB")
    for name, costs in index["steps"].items():
        print(
            f"{name:16}{costs['wall_seconds']:7.2f} s, {costs['cpu_seconds']:6.2f} CPU s, "
            f"PSS {costs['peak_pss'] / 1e6:,.0f} MB"
        )
    costs = index["megatron_import"]
    print(
        f"importing megatron.core.datasets.indexed_dataset, which the baseline does without: "
        f"{costs['wall_seconds']:.2f} s, {costs['cpu_seconds']:.2f} CPU s"
    )


def _print_goals(results: dict[str, Any]) -> list[dict[str, Any]]:
    rows = results["end_to_end"]
    largest = max(row["megabytes"] for row in rows)
    encoding = [
        item["sides"][tokenizer.OURS]["ratio_to_sentencepiece"] for item in results["tokenizer"]
    ]
    peak = max(run["peak_pss"] for row in rows for run in row["runs"][OURS]) / 1e6
    packing = results["packing"]
    milliseconds = max(item["milliseconds"]["median"] for item in packing)
    padding = max(item["padding"] for item in packing)
    worst = min(item["median"] for item in encoding)
    write = results["index"]["steps"]["write"]["wall_seconds"]
    found = [("encoding, times sentencepiece per CPU-s", worst, TOKENIZER_GOAL, True)]
    for row in rows:
        if row["megabytes"] == largest:
            for clock in ("wall", "cpu"):
                name = f"end to end, workers {row['workers']}, {clock} time, times the pool"
                ratio = statistics.median(row[f"{clock}_ratios"])
                found.append((name, ratio, SPEED_GOAL, True))
    found += [
        ("peak memory, all runs, MB of PSS", peak, MEMORY_GOAL, False),
        (f"packing {fetch.PACKED_LENGTHS:,} lengths, ms", milliseconds, PACK_GOAL_MS, False),
        ("padding of these, %", padding * 100, PADDING_GOAL * 100, False),
        (
            f"writing an index of {results['index']['documents']:,} documents, s",
            write,
            INDEX_GOAL_SECONDS,
            False,
        ),
    ]
    print()
    goals = []
    for name, value, goal, is_least in found:
        reached = value >= goal if is_least else value <= goal
        sign, verdict = (">=" if is_least else "<="), ("reached" if reached else "MISSED")
        print(f"{name:62}{value:9.4g}  goal {sign} {goal:g}: {verdict}")
        goals.append(
            {"name": name, "value": value, "goal": f"{sign} {goal:g}", "reached": bool(reached)}
        )
    return goals


def _median(runs: list[dict[str, float]], name: str) -> float:
    return statistics.median(run[name] for run in runs)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="preprocess.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--real-data",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="folder of the real files (default: ../shared/data beside the repository)",
    )
    parser.add_argument(
        "--megabytes", type=float, default=200.0, help="largest input in MB (default: 200)"
    )
    parser.add_argument(
        "--documents",
        type=timing.at_least_one,
        default=100_000_000,
        help="of the index (default: 100000000)",
    )
    parser.add_argument(
        "--rounds",
        type=timing.at_least_one,
        default=3,
        help="runs at the largest size (default: 3)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the corpus (default: 0)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "bench_out", help="folder (default: bench_out)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
