"""The main job on a laptop: preprocess, train on two ranks, reshard, export, verify, generate.

    python examples/quickstart/run.py [--output demo_out]

It runs the project's own commands, prints each, and leaves everything it makes in one folder.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from megatron_chimed import files
from megatron_chimed.errors import ChimedError, ConfigError, run_command
from megatron_chimed.observe.metrics import read_metrics

ROOT = Path(__file__).resolve().parent.parent.parent
MARKER = ".quickstart"
RESHARD_STEP = 100
PROMPTS = ("高血压的主要表现有", "患者发热、咳嗽三天，", "糖尿病患者的护理要点：")


class StepError(ChimedError):
    """A step of the demo failed; its log says why."""


class Demo:
    """The output folder and the steps done so far."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count, self.started = folder, 0, time.monotonic()

    def say(self, text: str) -> None:
        """Prints a numbered step."""
        self.count += 1
        elapsed = time.monotonic() - self.started
        print(f"\n[{self.count}] {text}  ({elapsed:.0f} s so far)", flush=True)

    def run(self, *command: str | Path) -> None:
        """Runs one of the project's commands, showing and logging what it prints.

        Raises:
            StepError: It failed.
        """
        words = [str(word) for word in command]
        print("    $ " + shlex.join(words), flush=True)
        runner = [sys.executable] if words[0].endswith(".py") else [sys.executable, "-m"]
        if words[0] == "torchrun":
            words[0] = "torch.distributed.run"
        log = self.folder / "logs" / f"{self.count:02d}.log"
        log.parent.mkdir(exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with (
            open(log, "a", encoding="utf-8") as stream,
            subprocess.Popen(
                [*runner, *words],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as process,
        ):
            for line in process.stdout:
                stream.write(line)
                if line.strip() and not line.startswith(("W1", "[W", "***")):
                    print("      " + line.rstrip(), flush=True)
        if process.returncode:
            raise StepError(f"`{words[0]}` ended with code {process.returncode}. Read {log}.")


def main(argv: list[str] | None = None) -> int:
    """Runs the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo_out"), help="folder to make anew")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _demo(arguments.output.absolute()))


def _demo(folder: Path) -> int:
    _clear(folder)
    demo = Demo(folder)
    sys.path.insert(0, str(ROOT))
    _prepare(demo)
    best = _train(demo)
    hf_folder = folder / "hf"
    demo.say("export to Hugging Face; transformers must give the same logits")
    demo.run(
        "tools/convert_checkpoint.py",
        "export-hf",
        "--checkpoint",
        best,
        "--output",
        hf_folder,
        "--verify-logits",
    )
    _report_heldout(demo, hf_folder)
    _generate(demo, best)
    _close(demo, best, hf_folder)
    return 0


def _clear(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise ConfigError(
            f"{folder} is not empty and was not made by this demo. Give another --output."
        )
    files.remove(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()


def _prepare(demo: Demo) -> None:
    from examples.quickstart.corpus.generator import generate

    folder = demo.folder
    demo.say("write a corpus of synthetic Chinese medical text")
    for name, part in generate(folder / "corpus").items():
        print(
            f"      {name}: {part.documents} documents, {part.text_bytes:,} bytes, "
            f"{part.diseases} diseases"
        )
    demo.say("train its tokenizer (sentencepiece BPE)")
    demo.run(
        "tools/train_tokenizer.py",
        "--input",
        folder / "corpus/train.jsonl",
        "--vocab-size",
        "2000",
        "--character-coverage",
        "0.99",
        "--output",
        folder / "tokenizer",
    )
    demo.say("preprocess to .bin/.idx")
    (folder / "data").mkdir()
    for part in ("train", "valid"):
        demo.run(
            "tools/preprocess_data.py",
            "--input",
            folder / f"corpus/{part}.jsonl",
            "--tokenizer",
            folder / "tokenizer",
            "--output-prefix",
            folder / "data" / part,
            "--workers",
            "2",
        )
    demo.run("tools/inspect_dataset.py", "check", folder / "data/train")


def _train(demo: Demo) -> Path:
    """Trains at TP2, goes on at PP2, and returns the best checkpoint."""
    folder = demo.folder
    command = [
        "torchrun",
        "--nproc-per-node",
        "2",
        "tools/train.py",
        "--config",
        "examples/quickstart/tiny.yaml",
        "--output_dir",
        folder / "run",
        "--tokenizer",
        folder / "tokenizer",
        "--data.train",
        folder / "data/train",
        "--data.valid",
        folder / "data/valid",
    ]
    demo.say(f"train to step {RESHARD_STEP} with 2 tensor-parallel ranks")
    demo.run(
        *command,
        "--parallel.tensor_parallel_size",
        "2",
        "--parallel.sequence_parallel",
        "true",
        "--training.stop_step",
        str(RESHARD_STEP),
    )
    demo.say("go on with 2 pipeline stages, until the held-out loss stops falling")
    demo.run(*command, "--parallel.pipeline_parallel_size", "2")
    events = read_metrics(folder / "run/metrics.jsonl")
    best = min((e for e in events if e["kind"] == "valid"), key=lambda event: event["loss"])
    return folder / f"run/checkpoints/iter_{best['step']:07d}"


def _report_heldout(demo: Demo, hf_folder: Path) -> None:
    from examples.quickstart.heldout import measure

    demo.say("score text about diseases and in templates that training never saw")
    corpus = demo.folder / "corpus"
    result = measure(hf_folder, corpus / "train.jsonl", corpus / "test.jsonl")
    print(f"      bits per byte on {result.num_bytes:,} held-out bytes (lower is better)")
    for name, value in (
        ("this model", result.model),
        ("unigram (token frequencies of the training text)", result.unigram),
        ("xz -9e, each document after the training text", result.xz_after_train),
        ("xz -9e, all held-out text by itself", result.xz_alone),
        ("xz -9e, all held-out text after the training text", result.xz_after_all),
    ):
        print(f"        {value:5.2f}  {name}")
    print(
        f"      longest string shared with training: {result.shared_length} characters, "
        f"{result.shared_text!r}"
    )
    if result.model >= result.unigram:
        raise StepError(
            f"the model ({result.model:.2f} bits per byte) is no better than token frequencies "
            f"({result.unigram:.2f}): training did not work. Read {demo.folder / 'logs'}."
        )


def _generate(demo: Demo, checkpoint: Path) -> None:
    folder = demo.folder
    demo.say("generate with 2 tensor-parallel ranks")
    prompts, output = folder / "prompts.jsonl", folder / "completions.jsonl"
    rows = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in PROMPTS]
    files.write_text(prompts, "\n".join(rows) + "\n")
    demo.run(
        "torchrun",
        "--nproc-per-node",
        "2",
        "tools/generate.py",
        "--checkpoint",
        checkpoint,
        "--prompts",
        prompts,
        "--output",
        output,
        "--max-new-tokens",
        "80",
        "--temperature",
        "0.7",
        "--top-p",
        "0.9",
        "--seed",
        "1",
        "--tensor-parallel-size",
        "2",
    )
    for line in output.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        print(f"      {row['prompt']}|{row['completion']}".replace("\n", " "))


def _close(demo: Demo, best: Path, hf_folder: Path) -> None:
    folder = demo.folder
    print(
        f"\nDone in {time.monotonic() - demo.started:.0f} s. A model of this size on 1 MB of text "
        "has the style, not the knowledge; the text is synthetic and no medical advice."
    )
    for what, path in (
        ("loss curve", folder / "run/loss_curve.png"),
        ("every step", folder / "run/metrics.jsonl"),
        ("TensorBoard", folder / "run/tensorboard"),
        ("best checkpoint", best),
        ("Hugging Face model", hf_folder),
        ("completions", folder / "completions.jsonl"),
        ("logs of each step", folder / "logs"),
    ):
        print(f"  {what:20} {path}")
    print(
        "Next: look at what the model reads, talk to it, train on your own text (README.md):\n"
        f"  python tools/inspect_dataset.py view {folder / 'data/train'} "
        f"--tokenizer {folder / 'tokenizer'}\n"
        f"  python tools/generate.py --checkpoint {best} --interactive --temperature 0.7"
    )


if __name__ == "__main__":
    sys.exit(main())
