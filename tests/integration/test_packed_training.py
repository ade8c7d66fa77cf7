"""Training on packed conversations through the commands, and what they refuse."""

import json

import numpy as np
import pytest
import torch
import yaml

from megatron_chimed.checkpoint.reader import CheckpointReader
from megatron_chimed.data.datasets.preference import PreferenceDataset
from megatron_chimed.data.datasets.prefix import open_prefix
from megatron_chimed.observe.metrics import read_metrics
from megatron_chimed.tokenizer import load_tokenizer
from tests.integration import commands
from tests.integration.commands import call
from tests.unit.tokenizer.samples import LINES, train_model

SEQ_LENGTH = 64


def preprocess(folder, corpus, name, *, stage, **options):
    words = commands.preprocess_words(folder, corpus, name)
    options = [word for key, value in options.items() for word in (f"--{key}", value)]
    done = call("preprocess_data", *words, "--stage", stage, *options)
    assert done.code == 0, done.err


def configure(folder, **sections):
    """Writes `run.yaml`; a section's keys replace those of `commands.write_config`."""
    size = load_tokenizer(str(folder / "tokenizer.model")).vocab_size
    path = commands.write_config(folder, vocab_size=size, seq_length=SEQ_LENGTH)
    config = yaml.safe_load(path.read_text())
    for name, value in sections.items():
        config[name] = {**config.get(name, {}), **value} if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def project(tmp_path):
    """A small tokenizer and conversations about its own lines."""
    (tmp_path / "tokenizer.model").write_bytes(train_model())
    rows = [
        {"instruction": f"第{i}问", "input": "", "output": line[: 5 + 3 * (i % 4)]}
        for i in range(12)
        for line in LINES
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "chat.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "more.jsonl").write_text("\n".join(lines[:20]), encoding="utf-8")
    (tmp_path / "plain.txt").write_text("\n".join(LINES * 20), encoding="utf-8")
    preprocess(tmp_path, tmp_path / "chat.jsonl", "chat", stage="sft", template="ziya")
    preprocess(tmp_path, tmp_path / "more.jsonl", "more", stage="sft", template="ziya")
    preprocess(tmp_path, tmp_path / "plain.txt", "plain", stage="pretrain")
    return tmp_path


def test_a_blend_of_conversations_trains_with_losses_apart(project):
    blend = [{"prefix": f"{project}/chat", "weight": 3.0}, {"prefix": f"{project}/more"}]
    data = {"train": blend, "split": "9,1", "overlong": "truncate"}
    path = configure(project, stage="sft", data=data, optim={"lr": 1e-2})
    (project / "prompts.txt").write_text("发热怎么办？\n", encoding="utf-8")
    asks = ("--logging.sample_prompts", project / "prompts.txt", "--logging.sample_tokens", 8)
    done = call("train", "--config", path, "--training.train_steps", 12, *asks)
    assert done.code == 0, done.err
    assert "keep their loss" in done.out
    assert "sample 1 at step 12: 发热怎么办？\n    -> " in done.out
    events = read_metrics(project / "run" / "metrics.jsonl")
    steps = [event for event in events if event["kind"] == "train"]
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.3
    sources = [event for event in events if event["kind"] == "sources"]
    assert len(sources) == len(steps)
    assert all({"loss/chat", "loss/more"} & event.keys() for event in sources)
    (valid,) = (event for event in events if event["kind"] == "valid")
    assert {"loss/chat", "loss/more"} <= valid.keys()


def test_a_run_stopped_on_the_way_ends_like_an_unbroken_one(project):
    blend = [{"prefix": f"{project}/chat", "weight": 3.0}, {"prefix": f"{project}/more"}]
    data = {"train": blend, "overlong": "truncate"}
    ends = []
    for run, stops in (("whole", [0]), ("parts", [5, 0])):
        output = {"output_dir": str(project / run)}
        path = configure(project, stage="sft", data=data, **output)
        for stop in stops:
            words = ["--training.train_steps", 12, "--training.stop_step", stop]
            done = call("train", "--config", path, *words)
            assert done.code == 0, done.err
        ends.append(CheckpointReader(project / run / "checkpoints/iter_0000012"))
    assert "at step 5" in done.out
    whole, parts = ends
    assert all(torch.equal(whole.read(key), parts.read(key)) for key in whole.tensors)


def test_a_run_does_not_go_on_with_other_packs(project):
    path = configure(project, stage="sft", data={"train": f"{project}/chat"})
    words = ["--config", path, "--data.overlong"]
    assert call("train", *words, "truncate", "--training.train_steps", 2).code == 0
    done = call("train", *words, "drop", "--training.train_steps", 4)
    assert done.code == 78
    assert "data.overlong was 'truncate' and is 'drop'" in done.err


def test_an_imported_model_is_tuned_like_our_own(project):
    """What transformers would load, and what a run left, are the same start."""
    path = configure(project, data={"train": f"{project}/plain"})
    assert call("train", "--config", path).code == 0
    hf, back = project / "hf", project / "back"
    words = ("export-hf", "--checkpoint", project / "run", "--output", hf)
    assert call("convert_checkpoint", *words).code == 0
    assert call("convert_checkpoint", "import-hf", "--input", hf, "--output", back).code == 0
    losses = []
    for start in ("run", "back"):
        name = f"from-{start}"
        path = configure(
            project,
            stage="sft",
            output_dir=str(project / name),
            data={"train": f"{project}/chat"},
            checkpoint={"load": str(project / start)},
        )
        done = call("train", "--config", path)
        assert done.code == 0, done.err
        assert f"weights from {project / start}" in done.out
        losses.append(commands.train_losses(project / name))
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("stage", "data"), [("pretrain", "chat"), ("sft", "plain")])
def test_data_of_the_other_stage_are_refused(project, stage, data):
    path = configure(project, stage=stage, data={"train": f"{project}/{data}"})
    done = call("train", "--config", path)
    assert done.code == 78
    other = "sft" if stage == "pretrain" else "pretrain"
    assert f"with --stage {other}, but this run trains on {stage} data" in done.err


def test_a_source_that_teaches_nothing_ends_the_run_before_it_starts(project):
    mask = project / "chat.mask.bin"
    mask.write_bytes(bytes(mask.stat().st_size))
    done = call("train", "--config", configure(project, stage="sft", data={
        "train": [{"prefix": f"{project}/more"}, {"prefix": f"{project}/chat"}],
        "overlong": "truncate",
    }))  # fmt: skip
    assert done.code == 65
    assert f"{project}/chat: none of the 60 documents" in done.err
    assert not (project / "run").exists()


def test_pretraining_with_documents_apart(project):
    options = {"reset_position_ids": True, "reset_attention_at_eod": True, "eod_mask_loss": True}
    path = configure(project, data={"train": f"{project}/plain", **options})
    done = call("train", "--config", path)
    assert done.code == 0, done.err
    assert "keep their loss" in done.out


def test_a_real_file_of_conversations_is_learnt(real_data, tmp_path, gloo_pool):
    """By two stages of a pipeline."""
    (tmp_path / "tokenizer.model").write_bytes((real_data / "chinese_sp.model").read_bytes())
    corpus = real_data / "medical_sft_1K_format.jsonl"
    preprocess(tmp_path, corpus, "data", stage="sft", template="ziya")
    data = {"train": f"{tmp_path}/data", "seq_length": 512, "overlong": "truncate"}
    model = {"max_position_embeddings": 512}
    path = configure(tmp_path, stage="sft", data=data, optim={"lr": 1e-2}, model=model)
    words = ["--config", str(path), "--parallel.pipeline_parallel_size", "2"]
    gloo_pool.run(commands.train_in_pool, 2, words, init=False)
    losses = commands.train_losses(tmp_path / "run")
    assert losses[-1] < losses[0] - 0.3


def test_a_real_file_of_preferences_is_packed_in_pairs(real_data, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((real_data / "chinese_sp.model").read_bytes())
    corpus = real_data / "dpo_zh_500.jsonl"
    preprocess(tmp_path, corpus, "data", stage="preference", template="ziya")
    prefix = open_prefix(str(tmp_path / "data"))
    dataset = PreferenceDataset(
        prefix.indexed,
        prefix.targets,
        prefix.rankings,
        documents=(0, prefix.indexed.num_documents),
        seq_length=2048,
        seed=0,
        overlong="drop",
    )
    pairs = 0
    for index in range(dataset.samples_per_epoch):
        sample = dataset[index]
        ends = np.flatnonzero(sample["ranks"] >= 0)
        assert np.bincount(sample["ranks"][ends]).tolist() == [len(ends) // 2] * 2
        assert set(np.bincount(sample["group_ids"][ends])) == {2}
        pairs += len(ends) // 2
    fitting = prefix.indexed.document_lengths(0, prefix.indexed.num_documents) <= 2048
    assert pairs == fitting.sum() > 400
