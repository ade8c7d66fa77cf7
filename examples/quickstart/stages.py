"""The stages of the demo: each runs the project's commands and proves that they did their work."""

from pathlib import Path

from examples.quickstart import dialogues, findings
from examples.quickstart.checker import Checker
from examples.quickstart.corpus.generator import generate
from examples.quickstart.demo import Demo, StepError
from examples.quickstart.findings import Finding
from examples.quickstart.heldout import measure
from megatron_chimed import files
from megatron_chimed.observe.metrics import read_metrics
from megatron_chimed.rejection.candidate import Candidate, read_candidates

CONFIGS = "examples/quickstart"
RESHARD_STEP = 100
# Longest sequence of a sample, as tiny.yaml has it.
SEQUENCE = 256
ROUNDS = 1
SHOWN = 6


def prepare(demo: Demo) -> None:
    """Text, dialogues, tokenizer, and their token files."""
    folder = demo.folder
    demo.say("write a corpus of synthetic Chinese medical text, and dialogues about it")
    for name, part in generate(folder / "corpus").items():
        demo.show(
            f"{name}: {part.documents} documents, {part.text_bytes:,} bytes, "
            f"{part.diseases} diseases"
        )
    for name, rows in dialogues.write_dialogues(folder / "dialogues").items():
        demo.show(f"{name}: {rows:,} rows")
    demo.show(f"of the SFT answers {dialogues.WRONG_SHARE:.0%} answer another question, on purpose")
    demo.say("train the tokenizer (sentencepiece BPE)")
    demo.run(
        *("tools/train_tokenizer.py", "--input", folder / "corpus/train.jsonl"),
        *("--vocab-size", "1998", "--added-token", "<human>", "--added-token", "<bot>"),
        *("--character-coverage", "0.99", "--output", folder / "tokenizer"),
    )
    demo.say("preprocess to .bin/.idx")
    (folder / "data").mkdir()
    for part in ("train", "valid"):
        _preprocess(demo, f"corpus/{part}.jsonl", part, "--workers", "2")
    chat = ("--template", "ziya", "--seq-length", str(SEQUENCE))
    for kind, stage in (("sft", "sft"), ("pairs", "preference")):
        for source in sorted((folder / "dialogues").glob(f"{kind}_*.jsonl")):
            _preprocess(demo, f"dialogues/{source.name}", source.stem, "--stage", stage, *chat)
    demo.run("tools/inspect_dataset.py", "check", folder / "data/train")


def _preprocess(demo: Demo, source: str, name: str, *flags: str) -> None:
    folder = demo.folder
    demo.run(
        *("tools/preprocess_data.py", "--input", folder / source),
        *("--tokenizer", folder / "tokenizer"),
        *("--output-prefix", folder / "data" / name, *flags),
    )


def pretrain(demo: Demo) -> Path:
    """Trains at TP2, goes on at PP2, and returns the best checkpoint."""
    flags = _train_flags(demo, "run", "train", "valid")
    demo.say(f"pretrain to step {RESHARD_STEP} with 2 tensor-parallel ranks")
    demo.run_ranks(
        *("tools/train.py", *flags, "--parallel.tensor_parallel_size", "2"),
        *("--parallel.sequence_parallel", "true", "--training.stop_step", str(RESHARD_STEP)),
    )
    demo.say("go on with 2 pipeline stages, until the held-out loss stops falling")
    demo.run_ranks("tools/train.py", *flags, "--parallel.pipeline_parallel_size", "2")
    events = read_metrics(demo.folder / "run/metrics.jsonl")
    best = min((e for e in events if e["kind"] == "valid"), key=lambda event: event["loss"])
    return demo.folder / f"run/checkpoints/iter_{best['step']:07d}"


def report_heldout(demo: Demo, checkpoint: Path) -> Finding:
    """Exports the pretrained model and scores held-out text with it in transformers."""
    corpus, hf_folder = demo.folder / "corpus", demo.folder / "hf/pretrained"
    demo.say("export to Hugging Face; transformers must give the same logits")
    _export(demo, checkpoint, hf_folder)
    demo.say("score text about diseases and in templates that training never saw")
    result = measure(hf_folder, corpus / "train.jsonl", corpus / "test.jsonl")
    demo.show(f"bits per byte on {result.num_bytes:,} held-out bytes (lower is better)")
    for name, value in (
        ("this model", result.model),
        ("unigram (token frequencies of the training text)", result.unigram),
        ("xz -9e, each document after the training text", result.xz_after_train),
        ("xz -9e, all held-out text by itself", result.xz_alone),
        ("xz -9e, all held-out text after the training text", result.xz_after_all),
    ):
        demo.show(f"  {value:5.2f}  {name}")
    demo.show(
        f"longest string shared with training: {result.shared_length} characters, "
        f"{result.shared_text!r}"
    )
    if result.model >= result.unigram:
        raise StepError(
            f"the model ({result.model:.2f} bits per byte) is no better than token frequencies "
            f"({result.unigram:.2f}): training did not work. Read {demo.folder / 'logs'}."
        )
    return Finding(
        stage="pretraining",
        what="bits per byte of held-out text (before: token frequencies)",
        before=f"{result.unigram:.2f}",
        after=f"{result.model:.2f}",
    )


def _export(demo: Demo, checkpoint: Path, output: Path) -> None:
    """Writes a Hugging Face folder and compares logits."""
    demo.run(
        *("tools/convert_checkpoint.py", "export-hf", "--checkpoint", checkpoint),
        *("--output", output, "--verify-logits"),
    )


def fine_tune(demo: Demo, checkpoint: Path) -> Finding:
    """SFT on two data-parallel ranks."""
    demo.say("fine-tune on dialogues (SFT) with 2 data-parallel ranks")
    flags = _train_flags(demo, "sft", "sft_train", "sft_valid")
    demo.run_ranks("tools/train.py", *flags, "--checkpoint.load", checkpoint)
    finding = findings.judge_sft(read_metrics(demo.folder / "sft/metrics.jsonl"))
    _show(demo, finding)
    return finding


def train_reward_model(demo: Demo) -> Finding:
    """Reward model on pairs, from the SFT model."""
    demo.say("train a reward model on pairs of answers, from the SFT model")
    flags = _train_flags(demo, "reward", "pairs_train", "pairs_valid")
    flags += ["--data.test", demo.folder / "data/pairs_test"]
    demo.run_ranks("tools/train.py", *flags, "--checkpoint.load", demo.folder / "sft")
    pairs = findings.read_rows(demo.folder / "dialogues/pairs_test.jsonl")
    finding = findings.judge_reward(read_metrics(demo.folder / "reward/metrics.jsonl"), pairs)
    _show(demo, finding)
    return finding


def sample_by_rejection(demo: Demo) -> list[Finding]:
    """Rejection sampling; fresh answers to held-out questions before and after."""
    folder = demo.folder
    demo.say("sample by rejection: eight answers to each question, the best one learned")
    demo.run_ranks(
        *("tools/rejection_sample.py", "--config", f"{CONFIGS}/rejection.yaml"),
        *("--output-dir", folder / "rejection", "--rounds", str(ROUNDS)),
        *("--policy", folder / "sft", "--reward-model", folder / "reward"),
        *("--prompts.train", f"['{folder / 'dialogues/prompts_train.jsonl'}']"),
        *("--prompts.held_out", f"['{folder / 'dialogues/prompts_test.jsonl'}']"),
    )
    before, after = (_fresh_answers(demo, number) for number in (0, ROUNDS))
    checker = Checker()
    found = []
    for what, value in (
        ("reward of fresh answers to held-out questions", lambda answer: answer.score),
        ("rules' score of them", lambda answer: checker.score(answer.text, answer.category)),
    ):
        gain = findings.measure_gain(before, after, value)
        demo.show(f"{what}: {gain}")
        found.append(findings.judge_gain("rejection sampling", what, gain))
    return found


def _fresh_answers(demo: Demo, number: int) -> list[Candidate]:
    return list(read_candidates(demo.folder / f"rejection/round_{number:02d}/samples.parquet"))


def deliver(demo: Demo) -> None:
    """Exports what the regime has made."""
    demo.say("export the last policy and the reward model, and compare logits again")
    for run, name in (("rejection", "policy"), ("reward", "reward")):
        _export(demo, demo.folder / run, demo.folder / "hf" / name)


def answer(demo: Demo) -> None:
    """Shows what the policies before and after rejection sampling say to held-out questions."""
    folder = demo.folder
    demo.say("answer held-out questions, the most likely tokens only")
    rows = findings.read_rows(folder / "dialogues/prompts_test.jsonl")
    rows = [row for row in rows if not row["history"]]
    rows = rows[:: max(1, len(rows) // SHOWN)][:SHOWN]
    prompts = folder / "questions.jsonl"
    lines = [dialogues.as_line({"prompt": row["prompt"]}) for row in rows]
    files.write_text(prompts, "".join(lines))
    said = {}
    for name in ("sft", "rejection"):
        output = folder / f"answers_{name}.jsonl"
        demo.run(
            *("tools/generate.py", "--checkpoint", folder / name, "--prompts", prompts),
            *("--output", output, "--max-new-tokens", "48"),
        )
        said[name] = [row["completion"] for row in findings.read_rows(output)]
    for row, first, last in zip(rows, said["sft"], said["rejection"], strict=True):
        demo.show(f"{row['prompt']}\n  SFT:       {first}\n  rejection: {last}")


def _train_flags(demo: Demo, run: str, train: str, valid: str) -> list[str | Path]:
    """The flags that every training of the demo needs; `run` names its folder and stage."""
    configs = ["tiny.yaml"] if run == "run" else ["tiny.yaml", f"{run}.yaml"]
    data = demo.folder / "data"
    return [
        *(word for name in configs for word in ("--config", f"{CONFIGS}/{name}")),
        *("--output-dir", demo.folder / run, "--tokenizer", demo.folder / "tokenizer"),
        *("--data.train", data / train, "--data.valid", data / valid),
    ]


def _show(demo: Demo, finding: Finding) -> None:
    demo.show(f"{finding.what}: {finding.before} before, {finding.after} after")
