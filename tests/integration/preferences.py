"""Ranked answers for the tests of the stages that learn from them, and a language model."""

import json

import yaml

from megatron_chimed.tokenizer import load_tokenizer
from tests.integration import commands
from tests.integration.commands import call
from tests.unit.tokenizer.samples import train_model

SEQ_LENGTH = 128
GOOD, BAD = ("口服胶囊", "每日三次"), ("体温升高", "血压心率")  # of equal length


def pairs(topics):
    """Pairs that differ in nothing but what the answers say."""
    for number, topic in enumerate(topics):
        good, bad = GOOD[number % 2], BAD[number % 2]
        yield {"question": f"{topic}？", "response_chosen": good, "response_rejected": bad}


def write_jsonl(path, rows):
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def preprocess(folder, corpus, name, **options):
    options = {"stage": "preference", "template": "ziya", **options}
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    done = call("preprocess_data", *commands.preprocess_words(folder, corpus, name), *words)
    assert done.code == 0, done.err


def configure(folder, name, **sections):
    """Writes `{name}.yaml`; a section's keys replace those of `commands.write_config`."""
    size = load_tokenizer(str(folder / "tokenizer.model")).vocab_size
    path = commands.write_config(folder, vocab_size=size, seq_length=SEQ_LENGTH)
    config = yaml.safe_load(path.read_text()) | {"output_dir": str(folder / name)}
    config["model"]["max_position_embeddings"] = SEQ_LENGTH
    for section, value in sections.items():
        config[section] = {**config[section], **value} if section in config else value
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config | {"stage": sections.get("stage", "reward")}))
    return path


def train(*words):
    done = call("train", "--config", *words)
    assert done.code == 0, done.err
    return done.out


def make_project(folder):
    """Tokenizer, pairs for training and held-out ones of other topics, and a run `sft`."""
    (folder / "tokenizer.model").write_bytes(train_model())
    topics = [f"{a}{b}{c}" for a in "发热咳嗽" for b in "患者入院" for c in "体温心率"]
    write_jsonl(folder / "train.jsonl", pairs(topics[:48]))
    write_jsonl(folder / "held.jsonl", pairs(topics[48:]))
    chats = [{"instruction": f"{topic}？", "input": "", "output": "口服"} for topic in topics[:16]]
    write_jsonl(folder / "chat.jsonl", chats)
    preprocess(folder, folder / "train.jsonl", "train")
    preprocess(folder, folder / "held.jsonl", "held")
    preprocess(folder, folder / "chat.jsonl", "chat", stage="sft")
    train(configure(folder, "sft", stage="sft", data={"train": f"{folder}/chat"}))
    return folder
