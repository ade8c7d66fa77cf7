"""Byte-level vocabularies and unigram models: our encoding and preprocessing beside others'.

    python benchmarks/byte_tokenizer.py                    # Qwen3, Llama 3 and a unigram model
    python benchmarks/byte_tokenizer.py --megabytes 100    # a larger corpus
    python benchmarks/byte_tokenizer.py --real-data DIR    # folder of the real files

Encoding: the same list of strings for all sides, one thread, CPU time, sides in turns. The other
side is the `tokenizers` library, called once for the whole list, or sentencepiece for the unigram
model; tokie and gigatoken join where they are installed, and are not timed if their ids differ.
Preprocessing: our command, `megatron_loop` of preprocess_commands.py (the loop of Megatron-LM's
preprocess_data.py with transformers' fast tokenizer and megatron-core's builder), and
`byte_line_pool`, a lean version of it without their imports; in turns, CPU time of all processes,
with the start and without it (less the time for one document). Files must be equal byte for byte.
Medians with lowest and highest ratio. Results go to bench_out/byte_tokenizer.json.
"""

import argparse
import filecmp
import importlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import timing
import tokenizers
from preprocess_commands import python_call, run_measured
from tokenizer_texts import make_corpus, read_real_texts

from megatron_chimed.command_line import CommandParser
from megatron_chimed.errors import ConfigError, DataError, run_command
from megatron_chimed.files import write_json
from megatron_chimed.tokenizer import load_tokenizer
from megatron_chimed.tokenizer.cpp_encoder import unpack

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ("qwen3", "llama3")
OURS, LIBRARY, THEIRS = "ours", "tokenizers", "sentencepiece"
POOL, MEGATRON = "line pool", "Megatron loop"
LINE = "{:10}{:12}{:>6}{:>15}{:>9}  {}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    options = _parser().parse_args(argv)
    if not options.real_data.is_dir():
        raise ConfigError(f"--real-data {options.real_data} is no folder: nothing to measure on.")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    timing.keep_freed_memory()
    facts = timing.machine("cpu") | {
        THEIRS: sentencepiece.__version__,
        LIBRARY: tokenizers.__version__,
        "command": " ".join(sys.argv),
    }
    real = read_real_texts(options.real_data)
    sets = {"real": real, "corpus": make_corpus(real, options.megabytes, seed=options.seed)}
    for key, value in facts.items():
        print(f"{key}: {value}")
    print("\n" + LINE.format("vocabulary", "texts", "MB", "side", "MB/CPU-s", "times the other"))
    results = []
    for name, texts in () if options.only_commands else sets.items():
        for family in options.families:
            folder = options.real_data / "tokenizers" / family
            results.append(_encode(family, folder, name, texts, options.rounds))
        model = options.real_data / "chinese_sp.model"
        results.append(_encode("unigram", model, name, texts, options.rounds))
    for family in options.families:
        folder = options.real_data / "tokenizers" / family
        results.append(_preprocess(family, folder, sets["corpus"], options.command_rounds))
    facts["load_average_at_end"] = [round(x, 2) for x in os.getloadavg()]
    output = options.output / "byte_tokenizer.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, {"machine": facts, "results": results})
    print(f"\nload average at the end: {facts['load_average_at_end']}\nwritten to {output}")
    return 0


def _encode(
    vocabulary: str, path: Path, name: str, texts: list[str], rounds: int
) -> dict[str, Any]:
    tokenizer = load_tokenizer(path)
    side, other = _other_side(path, texts)
    expected = _as_lists(other())
    if unpack(*tokenizer.encode_packed(texts)) != expected:
        raise DataError(f"our ids are not those of {side}: no time is worth anything.")
    sides: dict[str, Callable[[int], Any]] = {
        OURS: lambda _: tokenizer.encode_packed(texts),
        side: lambda _: other(),
    }
    if path.is_dir():
        for peer, encode in _installed_peers(path / "tokenizer.json", texts).items():
            wrong = sum(a != b for a, b in zip(_as_lists(encode(0)), expected, strict=True))
            if wrong:
                print(f"{vocabulary}, {name}: {peer} differs on {wrong} texts and is not timed")
            else:
                sides[peer] = encode
    times = timing.interleave(sides, device="cpu", rounds=rounds, warmups=1)
    megabytes = sum(len(text.encode("utf-8")) for text in texts) / 1e6
    found: dict[str, Any] = {"vocabulary": vocabulary, "texts": name, "megabytes": megabytes}
    for one, spread in times.items():
        ratio = timing.paired_ratio(spread, times[side])
        text = f"{ratio.median:.2f} ({min(ratio.samples):.2f}-{max(ratio.samples):.2f})"
        rate = megabytes * 1e3 / spread.median
        print(LINE.format(vocabulary, name, f"{megabytes:.1f}", one, f"{rate:.1f}", text))
        found[one] = {"milliseconds": timing.as_json(spread), "ratio": timing.as_json(ratio)}
    return found


def _other_side(path: Path, texts: list[str]) -> tuple[str, Callable[[], Any]]:
    """Whose ids are the reference, and its call."""
    if path.is_file():
        processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
        return THEIRS, lambda: processor.encode(texts, num_threads=1)
    library = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    return LIBRARY, lambda: library.encode_batch_fast(texts, add_special_tokens=False)


def _installed_peers(
    tokenizer_json: Path, texts: list[str]
) -> dict[str, Callable[[int], list[Any]]]:
    """Other libraries that read the file, in the calling thread, as fast as their API allows."""
    peers: dict[str, Callable[[int], list[Any]]] = {}
    if importlib.util.find_spec("tokie"):
        other = importlib.import_module("tokie").Tokenizer.from_json(str(tokenizer_json))
        peers["tokie"] = lambda _: [other.encode(x, add_special_tokens=False) for x in texts]
    if importlib.util.find_spec("gigatoken"):
        giga = importlib.import_module("gigatoken").Tokenizer(str(tokenizer_json))
        peers["gigatoken"] = lambda _: giga.encode_batch_list(texts, parallel=False)
    return peers


def _as_lists(encoded: list[Any]) -> list[list[int]]:
    return [one if isinstance(one, list) else one.ids for one in encoded]


def _preprocess(family: str, tokenizer: Path, texts: list[str], rounds: int) -> dict[str, Any]:
    """Our command and the others, one worker each."""
    eod_id = load_tokenizer(tokenizer).eod_id
    costs: dict[str, list[float]] = {OURS: [], POOL: [], MEGATRON: []}
    starts: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one, lines = folder / "one.jsonl", folder / "corpus.jsonl"
        _write_lines(one, texts[:1])
        _write_lines(lines, texts)
        for side, command in _commands(folder, one, tokenizer, eod_id).items():
            starts[side] = run_measured(command).cpu_seconds
        _compare(folder, family)
        commands = _commands(folder, lines, tokenizer, eod_id)
        for number in range(rounds):
            for side in list(commands) if number % 2 == 0 else list(commands)[::-1]:
                costs[side].append(run_measured(commands[side]).cpu_seconds)
            _compare(folder, family)
        megabytes = lines.stat().st_size / 1e6
    found: dict[str, Any] = {"vocabulary": family, "texts": "preprocess", "megabytes": megabytes}
    for side, seconds in costs.items():
        ratios = [b / a for a, b in zip(costs[OURS], seconds, strict=True)]
        net = [
            (b - starts[side]) / (a - starts[OURS])
            for a, b in zip(costs[OURS], seconds, strict=True)
        ]
        rate = megabytes / timing.Spread.of(seconds).median
        times = " / ".join(f"{timing.Spread.of(x).median:.2f}" for x in (ratios, net))
        text = f"ours is {times} times as fast (with / without {starts[side]:.1f} s of start)"
        print(LINE.format(family, "preprocess", f"{megabytes:.1f}", side, f"{rate:.1f}", text))
        found[side] = {"cpu_seconds": seconds, "start": starts[side], "ratio": ratios, "net": net}
    return found


def _write_lines(path: Path, texts: list[str]) -> None:
    with open(path, "w", encoding="utf-8") as stream:
        for text in texts:
            stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def _commands(folder: Path, lines: Path, tokenizer: Path, eod_id: int) -> dict[str, list[str]]:
    tool = str(ROOT / "tools" / "preprocess_data.py")
    ours = [sys.executable, tool, "--input", str(lines), "--tokenizer", str(tokenizer)]
    ours += ["--output-prefix", str(folder / OURS), "--workers", "1"]
    file = tokenizer / "tokenizer.json"
    return {
        OURS: ours,
        POOL: python_call("byte_line_pool", lines, file, folder / POOL, 1, eod_id),
        MEGATRON: python_call("megatron_loop", lines, tokenizer, folder / MEGATRON, 1, eod_id),
    }


def _compare(folder: Path, family: str) -> None:
    """Raises unless all outputs are equal, then removes them."""
    for side in (POOL, MEGATRON):
        for suffix in (".bin", ".idx"):
            pair = [folder / f"{one}{suffix}" for one in (OURS, side)]
            if not filecmp.cmp(*pair, shallow=False):
                raise DataError(f"{suffix} of {family} differs from the {side}'s.")
    for side in (OURS, POOL, MEGATRON):
        for path in folder.glob(f"{side}.*"):
            path.unlink()


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="byte_tokenizer.py",
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
        "--megabytes", type=float, default=20.0, help="size of the corpus in MB (default: 20)"
    )
    parser.add_argument(
        "--only-commands", action="store_true", help="measure preprocessing, not encoding"
    )
    parser.add_argument(
        "--families",
        nargs="+",
        default=FAMILIES,
        help=f"byte-level vocabularies (default: {' '.join(FAMILIES)})",
    )
    parser.add_argument(
        "--rounds", type=timing.at_least_one, default=5, help="of encoding (default: 5)"
    )
    parser.add_argument(
        "--command-rounds", type=timing.at_least_one, default=3, help="of commands (default: 3)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the corpus (default: 0)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "bench_out", help="folder (default: bench_out)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
