"""Generation: continuous batching compared with transformers.generate, greedy, on one CPU thread.

    python benchmarks/generate.py                                  # needs '.[bench]'
    python benchmarks/generate.py --real-data DIR --num-prompts 256

Two workloads on a tiny Llama: a batch of equal lengths, and prompts in batches of 16 where prompt
and answer lengths are those of CMtMedQA (`CMtMedQA_test.json` and `chinese_sp.model` in the folder
of --real-data; without it the second is left out). The weights are random, so where an answer ends
is given: to ours as each request's limit, which it does not plan by, to transformers as a stopping
criterion. transformers runs in inference mode with sdpa, its faster cache (dynamic or static), in
the faster order (as in the file, or sorted by prompt length), and with its own continuous batching.
All sides have equal weights and must give equal tokens before anything is timed; they alternate
within every round, and a figure is generated tokens over process time. Sampling, several candidates
and log-probabilities are measured for ours alone. Results go to bench_out/generate-cpu.json.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import timing
import torch
import transformers
from transformers.generation import StoppingCriteria, StoppingCriteriaList
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from megatron_chimed.checkpoint.save import Snapshot, save_checkpoint
from megatron_chimed.command_line import CommandParser
from megatron_chimed.conversion.hf_config import to_hf_config
from megatron_chimed.engine import ParallelConfig, TensorShard
from megatron_chimed.engine.agreement import Agreement
from megatron_chimed.errors import ConfigError, NumericError, run_command
from megatron_chimed.files import write_json
from megatron_chimed.generation import (
    Request,
    SamplingConfig,
    Session,
    open_session,
    stream_completions,
)
from megatron_chimed.kernels import native
from megatron_chimed.kernels.invariant_linear import INVARIANT_LINEAR
from megatron_chimed.model import ModelConfig
from megatron_chimed.tokenizer import load_tokenizer

MODEL = ModelConfig(
    vocab_size=8192,
    hidden_size=256,
    num_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    ffn_hidden_size=704,
    max_position_embeddings=2048,
)
MAX_BATCH = 16
INIT_STD = 0.1  # large weights keep the best token clear of the second
OURS = "ours"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """Prompts and the lengths of their completions."""

    name: str
    prompts: Sequence[Sequence[int]]
    limits: Sequence[int]

    @property
    def num_tokens(self) -> int:
        """Generated tokens, without padding."""
        return sum(self.limits)

    def requests(self, *, num_candidates: int = 1) -> list[Request]:
        """The workload as requests."""
        return [
            Request(prompt=tuple(p), prompt_id=i, candidate=j, max_new_tokens=limit)
            for i, (p, limit) in enumerate(zip(self.prompts, self.limits, strict=True))
            for j in range(num_candidates)
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    options = _parser().parse_args(argv)
    timing.keep_freed_memory()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    if reason := native.why_not_fused(INVARIANT_LINEAR, "cpu"):
        raise ConfigError(f"There is nothing to measure: {reason}.")
    facts = timing.machine("cpu") | {
        "command": " ".join(sys.argv),
        "transformers": transformers.__version__,
        "level": native.CPU_LEVELS[native.set_cpu_level(-1)],
    }
    for name, value in facts.items():
        print(f"{name}: {value}")
    print("one thread, process time; malloc keeps freed memory (M_MMAP_MAX 0) for all sides")
    results = []
    with _both_sides() as (session, model):
        for workload in _workloads(options):
            results += _compare(workload, session, model, options.rounds)
    options.output.mkdir(parents=True, exist_ok=True)
    output = options.output / "generate-cpu.json"
    write_json(output, {"machine": facts, "max_batch": MAX_BATCH, "results": results})
    print(f"\nwritten to {output}")
    return 0


def _workloads(options: argparse.Namespace) -> Iterator[Workload]:
    generator = torch.Generator().manual_seed(options.seed)
    ids = torch.randint(MODEL.vocab_size, (MAX_BATCH, 64), generator=generator)
    yield Workload(name="equal lengths", prompts=ids.tolist(), limits=[128] * MAX_BATCH)
    source = options.real_data / "CMtMedQA_test.json"
    if not source.is_file():
        print(f"\nlengths of CMtMedQA: not measured, {source} is not there (--real-data)")
        return
    tokenizer = load_tokenizer(options.real_data / "chinese_sp.model")
    rows = [row for row in json.loads(source.read_text(encoding="utf-8")) if "instruction" in row]
    rows = rows[: options.num_prompts]
    limits = [len(tokenizer.encode(row["output"])) for row in rows]
    for name, with_history in (("last question", False), ("whole dialogue", True)):
        texts = [
            "".join(q + a for q, a in row["history"] * with_history) + row["instruction"]
            for row in rows
        ]
        # Only the lengths matter: ids are folded into the small vocabulary.
        prompts = [[i % MODEL.vocab_size for i in tokenizer.encode(text)] for text in texts]
        yield Workload(name=f"CMtMedQA, {name}", prompts=prompts, limits=limits)


def _compare(workload: Workload, session: Session, model: Any, rounds: int) -> list[dict[str, Any]]:
    lengths = [len(prompt) for prompt in workload.prompts]
    print(
        f"\n{workload.name}: {len(lengths)} prompts of {min(lengths)} to {max(lengths)} tokens "
        f"({sum(lengths)}), completions of {min(workload.limits)} to {max(workload.limits)} "
        f"({workload.num_tokens})"
    )
    theirs = {
        f"transformers {cache}, {order}": _theirs(model, workload, cache, order == "sorted")
        for cache in ("dynamic", "static")
        for order in ("in order", "sorted")
    }
    sides = {OURS: _ours(session, workload, SamplingConfig(max_new_tokens=max(workload.limits)))}
    expected = sides[OURS](0)
    seconds = _check_tokens(theirs, expected)
    fastest = min(theirs, key=seconds.__getitem__)
    sides[fastest] = theirs[fastest]
    sides["transformers continuous batching"] = _their_continuous(model, workload)
    _check_tokens(sides, expected)
    times = timing.interleave(sides, device="cpu", rounds=rounds, warmups=1)
    times |= timing.interleave(_our_extras(session, workload), device="cpu", rounds=2, warmups=0)
    print(f"{'variant':44}{'tokens / CPU-second':>26}  ratio to {fastest}")
    return [_row(workload, name, times[name], times[fastest]) for name in times]


def _row(
    workload: Workload, name: str, spread: timing.Spread, baseline: timing.Spread
) -> dict[str, Any]:
    num_tokens = workload.num_tokens * (4 if "4 candidates" in name else 1)
    rate, slow, fast = (num_tokens / ms * 1e3 for ms in (spread.median, spread.high, spread.low))
    line = f"{name:44}{f'{rate:.0f} ({slow:.0f}-{fast:.0f})':>26}"
    row = {
        "workload": workload.name,
        "variant": name,
        "tokens_per_second": rate,
        "milliseconds": timing.as_json(spread),
    }
    if len(spread.samples) == len(baseline.samples):
        ratio = timing.paired_ratio(spread, baseline)
        row["ratio"] = timing.as_json(ratio)
        line += f"  {ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"
    print(line, flush=True)
    return row


def _ours(
    session: Session,
    workload: Workload,
    sampling: SamplingConfig,
    *,
    num_candidates: int = 1,
    with_log_probs: bool = False,
) -> Callable[[int], list[list[int]]]:
    requests = workload.requests(num_candidates=num_candidates)

    def run(_: int) -> list[list[int]]:
        found = stream_completions(
            session, requests, sampling, max_batch=MAX_BATCH, with_log_probs=with_log_probs
        )
        completions = sorted(found, key=lambda c: (c.prompt_id, c.candidate))
        return [list(completion.token_ids) for completion in completions]

    return run


def _our_extras(session: Session, workload: Workload) -> Mapping[str, Callable[[int], Any]]:
    greedy = SamplingConfig(max_new_tokens=max(workload.limits))
    drawn = dataclasses.replace(greedy, temperature=1.0)
    nucleus = dataclasses.replace(drawn, top_p=0.9)
    return {
        "ours, temperature 1": _ours(session, workload, drawn),
        "ours, temperature 1, top_p 0.9": _ours(session, workload, nucleus),
        "ours, temperature 1, log_probs": _ours(session, workload, drawn, with_log_probs=True),
        "ours, temperature 1, 4 candidates": _ours(session, workload, drawn, num_candidates=4),
    }


class _Ends(StoppingCriteria):
    """Ends each row after its own number of tokens."""

    def __init__(self, width: int, limits: Sequence[int]) -> None:
        self.ends = torch.tensor(limits) + width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return input_ids.shape[1] >= self.ends


def _theirs(
    model: Any, workload: Workload, cache: str, is_sorted: bool
) -> Callable[[int], list[list[int]]]:
    order = list(range(len(workload.prompts)))
    if is_sorted:
        order.sort(key=lambda i: len(workload.prompts[i]))

    def run(_: int) -> list[list[int]]:
        found: list[list[int]] = [[]] * len(order)
        for start in range(0, len(order), MAX_BATCH):
            part = order[start : start + MAX_BATCH]
            rows = _their_batch(model, workload, part, cache)
            for i, row in zip(part, rows, strict=True):
                found[i] = row
        return found

    return run


def _their_batch(
    model: Any, workload: Workload, part: Sequence[int], cache: str
) -> list[list[int]]:
    prompts = [torch.tensor(workload.prompts[i]) for i in part]
    limits = [workload.limits[i] for i in part]
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad(prompts, batch_first=True, padding_side="left")
    mask = pad([torch.ones_like(p) for p in prompts], batch_first=True, padding_side="left")
    width = ids.shape[1]
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=max(limits),
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([_Ends(width, limits)]),
            **({"cache_implementation": cache} if cache != "dynamic" else {}),
        )
    return [row[width:][:limit].tolist() for row, limit in zip(out, limits, strict=True)]


def _their_continuous(model: Any, workload: Workload) -> Callable[[int], list[list[int]]]:
    longest = max(map(len, workload.prompts)) + max(workload.limits)
    pages = -(-longest // 32) * MAX_BATCH
    config = ContinuousBatchingConfig(
        page_size=32,
        num_blocks=pages,
        max_batch_tokens=1024,
        max_requests_per_batch=MAX_BATCH,
        allow_block_sharing=False,
        use_async_batching=False,
    )
    greedy = transformers.GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)

    def run(_: int) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        with model.continuous_batching_context_manager(
            generation_config=greedy, continuous_batching_config=config, block=True, timeout=5
        ) as manager:
            for i, (prompt, limit) in enumerate(
                zip(workload.prompts, workload.limits, strict=True)
            ):
                manager.add_request(list(prompt), request_id=str(i), max_new_tokens=limit)
            while len(found) < len(workload.prompts):
                result = manager.get_result(timeout=60)
                found[int(result.request_id)] = list(result.generated_tokens)
        return [found[i] for i in range(len(found))]

    return run


def _check_tokens(
    sides: Mapping[str, Callable[[int], list[list[int]]]], expected: list[list[int]]
) -> dict[str, float]:
    """Runs each side once; CPU seconds of each.

    Raises:
        NumericError: One gives other tokens than expected.
    """
    seconds = {}
    for name, run in sides.items():
        started = time.process_time()
        found = run(0)
        seconds[name] = time.process_time() - started
        wrong = sum(a != b for a, b in zip(found, expected, strict=True))
        if wrong:
            raise NumericError(
                f"{wrong} of {len(expected)} completions of {name} differ from those of {OURS}: "
                "they do not compute the same thing, and nothing is timed."
            )
    return seconds


@contextlib.contextmanager
def _both_sides() -> Iterator[tuple[Session, Any]]:
    """Our session and transformers' model, with the same random weights."""
    token_ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    raw = to_hf_config(MODEL, dtype=torch.float32, token_ids=token_ids)
    raw |= {"initializer_range": INIT_STD, "attn_implementation": "sdpa"}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**raw)).eval()
    shards = [
        TensorShard(key=k, global_shape=tuple(v.shape), offset=(0,) * v.dim(), tensor=v)
        for k, v in model.state_dict().items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        snapshot = Snapshot(
            iteration=0,
            shards=shards,
            state={},
            config={"model": dataclasses.asdict(MODEL)},
            tokenizer={},
        )
        path = save_checkpoint(Path(folder), snapshot, agreement=Agreement(), run_id="bench")
        with open_session(path, ParallelConfig(), world=(0, 1, 0)) as session:
            yield session, model


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="generate.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=timing.at_least_one, default=5, help="measured rounds (5)")
    parser.add_argument("--seed", type=int, default=0, help="of the equal prompts (0)")
    parser.add_argument(
        "--num-prompts",
        type=timing.at_least_one,
        default=128,
        help="rows of CMtMedQA, from the first on (128)",
    )
    parser.add_argument(
        "--real-data",
        type=Path,
        default=Path("../shared/data"),
        metavar="DIR",
        help="folder with CMtMedQA_test.json and chinese_sp.model (../shared/data)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("bench_out"), help="folder of the result (bench_out)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
