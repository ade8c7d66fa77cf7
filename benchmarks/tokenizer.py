"""Text to ids: our C++ path compared with sentencepiece and Hugging Face's tokenizers, equal ids.

    python benchmarks/tokenizer.py                       # the real files and 40 MB made from them
    python benchmarks/tokenizer.py --megabytes 200       # a larger corpus
    python benchmarks/tokenizer.py --real-data DIR       # folder of the real files

All sides get the same list of Python strings and use one thread; sentencepiece is called once for
the whole list. Ours gives packed arrays, the others Python lists or objects. Every id is compared
first, and a side whose ids differ is not timed. Hugging Face's side reads the tokenizer.json that
we export, on the real files alone. CPU time, sides in turns, medians with 20th and 80th
percentiles. Results go to bench_out/tokenizer.json.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import timing
from tokenizer_texts import make_corpus, make_models, read_real_texts

from megatron_chimed.command_line import CommandParser
from megatron_chimed.errors import ConfigError, DataError, run_command
from megatron_chimed.files import write_json
from megatron_chimed.tokenizer import SentencePieceTokenizer
from megatron_chimed.tokenizer.cpp_encoder import load_fast_path, unpack

ROOT = Path(__file__).resolve().parent.parent
OURS, THEIRS, HF = "ours", "sentencepiece", "tokenizers"
ADDED = ("<human>", "<bot>")


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    options = _parser().parse_args(argv)
    if not options.real_data.is_dir():
        raise ConfigError(f"--real-data {options.real_data} is no folder: nothing to measure on.")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    timing.keep_freed_memory()
    facts = timing.machine("cpu") | {
        "sentencepiece": sentencepiece.__version__,
        "command": " ".join(sys.argv),
    }
    for name, value in facts.items():
        print(f"{name}: {value}")
    real = read_real_texts(options.real_data)
    sets = {"real": real, "corpus": make_corpus(real, options.megabytes, seed=options.seed)}
    print(f"\n{'vocabulary':18}{'texts':8}{'MB':>6}{'side':>15}{'MB/s':>9}{'(20%-80%)':>17}  ratio")
    results = []
    for vocabulary, model in make_models(options.real_data, real).items():
        for name, texts in sets.items():
            results.append(measure(vocabulary, model, name, texts, options.rounds))
    output = options.output / "tokenizer.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, {"machine": facts, "results": results})
    print(f"\nwritten to {output}")
    return 0


def measure(
    vocabulary: str, model: bytes, name: str, texts: list[str], rounds: int
) -> dict[str, Any]:
    """Our speed and sentencepiece's on some texts, their ids compared first."""
    size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    tokenizer = SentencePieceTokenizer(model, {text: size + i for i, text in enumerate(ADDED)})
    start = time.process_time()
    load_fast_path(model, tokenizer.added_tokens)
    load_ms = (time.process_time() - start) * 1e3
    sides, notes = _sides(tokenizer, texts, with_hf=name == "real")
    times = timing.interleave(sides, device="cpu", rounds=rounds, warmups=1)
    megabytes = sum(len(text.encode("utf-8")) for text in texts) / 1e6
    result = {
        "vocabulary": vocabulary,
        "texts": name,
        "megabytes": megabytes,
        "tokens": int(tokenizer.encode_packed(texts)[1].sum()),
        "load_ms": load_ms,
        "notes": notes,
        "sides": {},
    }
    for side, spread in times.items():
        ratio = timing.paired_ratio(spread, times[THEIRS])
        rate, low, high = (megabytes * 1e3 / x for x in (spread.median, spread.high, spread.low))
        print(
            f"{vocabulary:18}{name:8}{megabytes:6.1f}{side:>15}{rate:9.1f}"
            f"{f'({low:.1f}-{high:.1f})':>17}  {ratio.median:.2f}"
            f" ({ratio.low:.2f}-{ratio.high:.2f})"
        )
        result["sides"][side] = {
            "milliseconds": timing.as_json(spread),
            "ratio_to_sentencepiece": timing.as_json(ratio),
        }
    print(f"{'':26}{result['tokens']} tokens, loaded in {load_ms:.0f} ms {' '.join(notes)}")
    return result


def _sides(
    tokenizer: SentencePieceTokenizer, texts: list[str], *, with_hf: bool
) -> tuple[dict[str, Callable[[int], Any]], list[str]]:
    """The sides whose ids are sentencepiece's, and a note on each whose ids are not."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_bytes)
    expected = processor.encode(texts, num_threads=1)
    if not tokenizer.fast.startswith("C++"):
        raise ConfigError(f"There is nothing to measure: {tokenizer.fast}.")
    if unpack(*tokenizer.encode_packed(texts)) != expected:
        raise DataError("our ids are not sentencepiece's: no time is worth anything.")
    sides: dict[str, Callable[[int], Any]] = {
        OURS: lambda _: tokenizer.encode_packed(texts),
        THEIRS: lambda _: processor.encode(texts, num_threads=1),
    }
    if not with_hf:
        return sides, []
    import tokenizers

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        other = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    found = [one.ids for one in other.encode_batch_fast(texts, add_special_tokens=False)]
    wrong = sum(a != b for a, b in zip(found, expected, strict=True))
    if wrong:
        return sides, [f"{HF} {tokenizers.__version__} differs on {wrong} texts: not timed."]
    sides[HF] = lambda _: other.encode_batch_fast(texts, add_special_tokens=False)
    return sides, []


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--real-data",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="folder of the real files (default: ../shared/data beside the repository)",
    )
    parser.add_argument(
        "--megabytes", type=float, default=40.0, help="size of the corpus in MB (default: 40)"
    )
    parser.add_argument(
        "--rounds", type=timing.at_least_one, default=5, help="measured rounds (default: 5)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the corpus (default: 0)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "bench_out", help="folder (default: bench_out)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
