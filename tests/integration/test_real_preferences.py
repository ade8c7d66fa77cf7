"""Conversations and pairs that nobody here wrote, through SFT, the reward and the DPO stage."""

import json
import math

from tests.integration import commands
from tests.integration.commands import call
from tests.integration.preferences import configure, preprocess, train, write_jsonl

SEQ_LENGTH = 1024
SMALL = {"training": {"train_steps": 3, "global_batch_size": 4}, "model": {"hidden_size": 16}}


def test_real_pairs_train_a_reward_model_and_a_policy(real_data, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((real_data / "chinese_sp.model").read_bytes())
    lines = (real_data / "dpo_zh_500.jsonl").read_text(encoding="utf-8").splitlines()
    write_jsonl(tmp_path / "pairs.jsonl", map(json.loads, lines[:60]))
    preprocess(tmp_path, tmp_path / "pairs.jsonl", "pairs")
    chats = {"chat": "medical_sft_1K_format.jsonl", "talk": "CMtMedQA_test.json"}
    for name, file in chats.items():
        preprocess(tmp_path, real_data / file, name, stage="sft")
    data = {"seq_length": SEQ_LENGTH, "overlong": "drop"}
    model = {**SMALL["model"], "max_position_embeddings": SEQ_LENGTH}
    options = {**SMALL, "model": model}
    sft = {"data": {**data, "train": [{"prefix": f"{tmp_path}/{name}"} for name in chats]}}
    train(configure(tmp_path, "sft", stage="sft", **sft, **options))
    steps = commands.train_events(tmp_path / "sft")
    assert all({"loss/chat", "loss/talk"} <= step.keys() for step in steps)
    load = {"data": {**data, "train": f"{tmp_path}/pairs", "split": "9,1"}, **options}
    load["checkpoint"] = {"load": str(tmp_path / "sft")}
    train(configure(tmp_path, "reward", **load))
    said = train(configure(tmp_path, "dpo", stage="dpo", **load))
    assert "global batches computed" in said
    for run in ("reward", "dpo"):
        losses = commands.train_losses(tmp_path / run)
        assert abs(losses[0] - math.log(2)) < 0.1
    pairs = (json.loads(line) for line in lines[:60] if len(line) < 2000)
    rows = [
        {"conversations": pair["conversations"], "completion": pair[side]}
        for pair in pairs
        for side in ("chosen", "rejected")
    ]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    words = ["--checkpoint", tmp_path / "reward", "--input", source]
    done = call("score", *words, "--output", tmp_path / "scored.jsonl")
    assert done.code == 0, done.err
    scored = [*map(json.loads, (tmp_path / "scored.jsonl").read_text("utf-8").splitlines())]
    assert len(scored) == len(rows) > 10
    assert all(math.isfinite(row["score"]) for row in scored)
