"""A policy that answers well or badly, a judge that knows which, and prompts, for their rounds."""

import json

import yaml

from tests.integration.commands import call
from tests.integration.preferences import (
    BAD,
    GOOD,
    SEQ_LENGTH,
    configure,
    pairs,
    preprocess,
    train,
    write_jsonl,
)
from tests.unit.tokenizer.samples import train_model

TOPICS = [f"{a}{b}{c}" for a in "发热咳嗽" for b in "患者入院" for c in "体温心率"]
NUM_PROMPTS, NUM_HELD_OUT = 6, 4
PER_PROMPT = 4
HISTORY = [["头痛？", "多喝水"]]
EXTERNAL = [
    {"id": "q0", "completion": "口服。", "source": "gpt-4"},
    {"id": "q1", "completion": "体温。"},  # the file's name is the source
]


def make_project(folder):
    """Makes runs `sft` and `judge`, and prompts of topics that neither has seen.

    The policy has learned good and bad answers alike, the judge to tell them apart.
    """
    (folder / "tokenizer.model").write_bytes(train_model())
    seen, unseen = TOPICS[:48], TOPICS[48:]
    chats = [
        {"instruction": f"{topic}？", "input": "", "output": answer}
        for topic in seen
        for answer in (*GOOD, *BAD)
    ]
    preprocess(folder, write_jsonl(folder / "chat.jsonl", chats), "chat", stage="sft")
    preprocess(folder, write_jsonl(folder / "pairs.jsonl", pairs(seen)), "pairs")
    sft = {"data": {"train": f"{folder}/chat"}, "optim": {"lr": 1e-2}}
    train(configure(folder, "sft", stage="sft", training={"train_steps": 40}, **sft))
    judge = {"data": {"train": f"{folder}/pairs"}, "optim": {"lr": 3e-3}}
    judge["checkpoint"] = {"load": str(folder / "sft")}
    train(configure(folder, "judge", training={"train_steps": 24}, **judge))
    rows = [
        {"id": f"q{n}", "prompt": f"{topic}？", "category": "ab"[n % 2]}
        for n, topic in enumerate(unseen)
    ]
    rows[0]["history"] = HISTORY
    for number, row in enumerate(rows[:NUM_PROMPTS]):
        row["completion"] = GOOD[number % 2]
    write_jsonl(folder / "train.jsonl", rows[:NUM_PROMPTS])
    write_jsonl(folder / "held.jsonl", rows[NUM_PROMPTS : NUM_PROMPTS + NUM_HELD_OUT])
    write_jsonl(folder / "doctors.jsonl", EXTERNAL)
    return folder


def configure_rounds(folder, output, **sections):
    """Writes `OUTPUT.yaml` for rounds in `folder/OUTPUT`; values given replace those here."""
    config = {
        "output_dir": str(folder / output),
        "policy": str(folder / "sft"),
        "reward_model": str(folder / "judge"),
        "prompts": {
            "train": [str(folder / "train.jsonl")],
            "held_out": [str(folder / "held.jsonl")],
        },
        "candidates": {"per_prompt": PER_PROMPT, "max_new_tokens": 12},
        "selection": {"keep_unfinished": True},
        "training": {
            "epochs": 2.0,
            "settings": {
                "data": {"seq_length": SEQ_LENGTH},
                "optim": {"lr": 3e-3},
                "training": {"micro_batch_size": 1, "global_batch_size": 2, "precision": "fp32"},
                "logging": {"progress": "plain", "log_interval": 1, "tensorboard": False},
            },
        },
    }
    path = folder / f"{output}.yaml"
    path.write_text(yaml.safe_dump(_merged(config, sections)))
    return path


def sample(config, *words):
    """Runs the rounds of a configuration; what was said."""
    done = call("rejection_sample", "--config", config, *words)
    assert done.code == 0, done.err
    return done.out


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _merged(first, second):
    nested = isinstance(first, dict) and isinstance(second, dict)
    if not nested:
        return second
    return first | {key: _merged(first.get(key), value) for key, value in second.items()}
