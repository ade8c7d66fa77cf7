"""The whole regime, through its commands, on data that nobody here wrote."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from megatron_chimed.checkpoint.reader import newest_checkpoint, open_checkpoint
from megatron_chimed.conversion.hf_verify import checkpoint_logits
from megatron_chimed.rejection.candidate import read_candidates
from tests.integration import commands
from tests.integration.commands import call
from tests.integration.preferences import configure, preprocess, train, write_jsonl
from tests.integration.rejection import configure_rounds, read_jsonl, sample

SEQ_LENGTH = 1024
STEPS = 3
NUM_PAIRS, NUM_PROMPTS, NUM_HELD_OUT = 60, 8, 4
SFT, DIALOGUES, PAIRS = "medical_sft_1K_format.jsonl", "CMtMedQA_test.json", "dpo_zh_500.jsonl"


@pytest.fixture(scope="module")
def project(real_data, tmp_path_factory):
    """Runs `sft`, `judge` and `dpo`, and prompts."""
    folder = tmp_path_factory.mktemp("regime")
    (folder / "tokenizer.model").write_bytes((real_data / "chinese_sp.model").read_bytes())
    lines = (real_data / PAIRS).read_text(encoding="utf-8").splitlines()
    write_jsonl(folder / "pairs.jsonl", map(json.loads, lines[:NUM_PAIRS]))
    preprocess(folder, folder / "pairs.jsonl", "pairs")
    preprocess(folder, real_data / SFT, "chat", stage="sft")
    preprocess(folder, real_data / DIALOGUES, "dialogues", stage="sft")

    options = {
        "training": {"train_steps": STEPS, "global_batch_size": 4},
        "model": {"hidden_size": 16, "max_position_embeddings": SEQ_LENGTH},
    }
    data = {"seq_length": SEQ_LENGTH, "overlong": "drop"}
    blend = [{"prefix": f"{folder}/{name}"} for name in ("chat", "dialogues")]
    train(configure(folder, "sft", stage="sft", data={**data, "train": blend}, **options))
    options["data"] = {**data, "train": f"{folder}/pairs", "split": "9,1"}
    options["checkpoint"] = {"load": str(folder / "sft")}
    train(configure(folder, "judge", **options))
    said = train(configure(folder, "dpo", stage="dpo", **options))
    assert "global batches computed" in said
    rows = json.loads((real_data / DIALOGUES).read_text(encoding="utf-8"))
    write_jsonl(folder / "train.jsonl", rows[:NUM_PROMPTS])
    ranked = sorted(read_jsonl(folder / "pairs.jsonl"), key=lambda row: len(str(row)))
    write_jsonl(folder / "held.jsonl", ranked[:NUM_HELD_OUT])
    return folder


def test_each_stage_learns_from_its_loss_on(project):
    sft, judge, dpo = (commands.train_losses(project / run) for run in ("sft", "judge", "dpo"))
    assert sft[0] == pytest.approx(math.log(vocab_size(project)), rel=0.1)
    assert sft[-1] < sft[0]
    assert judge[0] == pytest.approx(math.log(2), abs=0.1)
    assert dpo[0] == pytest.approx(math.log(2), abs=1e-5), "policy and reference are one"
    for run, stage_losses in (("sft", sft), ("judge", judge), ("dpo", dpo)):
        assert len(stage_losses) == STEPS, run
        assert all(map(math.isfinite, stage_losses)), run


def vocab_size(project):
    return open_checkpoint(newest_checkpoint(project / "sft")).config["model"]["vocab_size"]


def test_rows_of_ranked_answers_are_scored(project):
    rows = [
        {"conversations": pair["conversations"], "completion": pair[side]}
        for pair in read_jsonl(project / "pairs.jsonl")
        if len(str(pair)) < 1000
        for side in ("chosen", "rejected")
    ]
    words = ["--input", write_jsonl(project / "rows.jsonl", rows)]
    output = project / "scored.jsonl"
    done = call("score", "--checkpoint", project / "judge", *words, "--output", output)
    assert done.code == 0, done.err
    scored = read_jsonl(output)
    assert len(scored) == len(rows) > 10
    assert all(math.isfinite(row["score"]) for row in scored)


@pytest.fixture(scope="module")
def policy(project):
    """The folder of a round on dialogues, whose own answers and those of others take part."""
    asked = read_jsonl(project / "train.jsonl")
    external = [{"id": row["id"], "completion": "请您及时就医。"} for row in asked[:3]]
    write_jsonl(project / "gpt4.jsonl", external)
    path = configure_rounds(
        project,
        "rounds",
        prompts={"category_key": "cate1"},
        candidates={
            "per_prompt": 2,
            "references": True,
            "external": [str(project / "gpt4.jsonl")],
            "max_new_tokens": 16,
        },
        training={"settings": {"data": {"seq_length": SEQ_LENGTH}}},
    )
    sample(path)
    return project / "rounds"


def test_a_round_on_dialogues(project, policy):
    asked = read_jsonl(project / "train.jsonl")
    found = read_candidates(policy / "round_01/candidates.parquet")
    by_prompt = {row["id"]: [c for c in found if c.prompt_id == row["id"]] for row in asked}
    for place, row in enumerate(asked):
        candidates = by_prompt[row["id"]]
        assert {c.category for c in candidates} == {row["cate1"]}
        sources = ["gpt4"] * (place < 3) + ["policy"] * 2 + ["reference"]
        assert [c.source for c in candidates] == sources
        assert candidates[-1].text == row["output"]
        best = max(candidates, key=lambda c: -math.inf if c.score is None else c.score)
        assert [c for c in candidates if c.decision == "selected"] == [best]
    learned = read_jsonl(policy / "round_01/selected.jsonl")
    assert [row["id"] for row in learned] == [row["id"] for row in asked]
    for row, source in zip(learned, asked, strict=True):
        turns = [text for turn in source["history"] for text in turn]
        questions = [*turns, source["instruction"]]
        assert [message["value"] for message in row["conversations"][:-1]] == questions
    assert len(read_candidates(policy / "round_01/samples.parquet")) == NUM_HELD_OUT


@pytest.mark.parametrize("run", ["sft", "judge", "dpo", "rounds"])
def test_transformers_loads_the_export_with_equal_numbers(project, policy, run, tmp_path):
    words = ["--checkpoint", project / run, "--output", tmp_path / "hf"]
    # transformers breaks ties of this unigram model otherwise, so an export with it is refused.
    done = call("convert_checkpoint", "export-hf", *words, "--weights-only")
    assert done.code == 0, done.err
    is_judge = run == "judge"
    kind = AutoModelForSequenceClassification if is_judge else AutoModelForCausalLM
    model, loading = kind.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(loading.values())
    tokens = torch.arange(5, 69).reshape(2, 32)
    with torch.no_grad():
        theirs = model(tokens).logits
    ours = checkpoint_logits(open_checkpoint(newest_checkpoint(project / run)), tokens)
    ours = ours[:, -1] if is_judge else ours  # transformers scores the last token alone
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
