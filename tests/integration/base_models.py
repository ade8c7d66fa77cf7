"""A tiny model of a family of today, its tokenizer and data, and the stages that start from it."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_chimed.conversion import hf_config
from megatron_chimed.tokenizer.byte_bpe_training import train_json
from tests.integration.commands import call
from tests.integration.preferences import GOOD, pairs, write_jsonl
from tests.unit.tokenizer.byte_bpe import HOSTILE, THINK, write_folder
from tests.unit.tokenizer.samples import LINES

SEQ_LENGTH = 320
FIT = ("--seq-length", SEQ_LENGTH)
TOPICS = [f"{a}{b}" for a in "发热咳嗽" for b in "患者入院"]
STOPS = ("<|im_end|>", "<|endoftext|>")
TRAINING = {"micro_batch_size": 1, "global_batch_size": 2, "precision": "fp32"}
LOGGING = {"progress": "plain", "log_interval": 1, "tensorboard": False}


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """How a family's base model looks, and what its chat models use."""

    model_type: str
    template: str
    added: tuple[str, ...] = ()
    """Structure in its tokenizer beside the special tokens."""
    changes: tuple[tuple[str, object], ...] = ()
    """Further keys of its config.json."""


BASE_MODELS = {
    "qwen2": BaseModel(
        model_type="qwen2", template="chatml", changes=(("tie_word_embeddings", True),)
    ),
    "qwen3": BaseModel(
        model_type="qwen3", template="qwen3", added=THINK, changes=(("head_dim", 16),)
    ),
}


def make_base(folder: Path, base: BaseModel) -> Path:
    """A Hugging Face folder as the families publish it: weights, tokenizer, stop ids."""
    content = json.loads(train_json(LINES * 3, 400, base.added))
    ids = {token["content"]: token["id"] for token in content["added_tokens"]}
    config = AutoConfig.for_model(
        base.model_type,
        vocab_size=416,  # padded, as the families' own embeddings are
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=SEQ_LENGTH,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=ids["<|endoftext|>"],
        pad_token_id=None,
        **dict(base.changes),
    )
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.uniform_(-0.3, 0.3)
    model.save_pretrained(folder)
    named = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "add_bos_token": False}
    stops = {"eos_token_id": [ids[text] for text in STOPS]}
    return write_folder(folder, content, tokenizer_config=named, generation_config=stops)


def run(tool: str, *words) -> str:
    """Runs a command that has to succeed; what it said."""
    done = call(tool, *words)
    assert done.code == 0, done.err
    return done.out


def write_data(folder: Path) -> None:
    """Texts, dialogues and pairs; some of them spell special tokens."""
    write_jsonl(folder / "corpus.jsonl", [{"text": text} for text in (*LINES, *HOSTILE) * 4])
    chats = [
        {"instruction": f"{topic}？", "input": "", "output": GOOD[number % 2]}
        for number, topic in enumerate(TOPICS)
    ]
    chats += [{"instruction": text, "input": "", "output": f"{text}答"} for text in HOSTILE[:2]]
    write_jsonl(folder / "chat.jsonl", chats)
    write_jsonl(folder / "pairs.jsonl", pairs(TOPICS))
    asked = [{"id": f"q{n}", "prompt": f"{topic}呢？"} for n, topic in enumerate(TOPICS)]
    write_jsonl(folder / "prompts.jsonl", asked[:4])
    write_jsonl(folder / "held.jsonl", asked[4:8])


def preprocess(folder: Path, source: str, name: str, *words) -> str:
    """Token files `folder/name` of `folder/source.jsonl`, with the imported tokenizer."""
    given = ("--input", folder / f"{source}.jsonl", "--tokenizer", folder / "hf")
    return run("preprocess_data", *given, "--output-prefix", folder / name, *words)


def configure(
    folder: Path, name: str, *, stage: str, data: str, load: str, steps: int, **more
) -> Path:
    """Writes `NAME.yaml` of a run of the imported model's sizes."""
    sections = settings_of(
        folder, stage, data=str(folder / data), load=str(folder / load), steps=steps
    )
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"output_dir": str(folder / name)} | sections | more))
    return path


def settings_of(folder: Path, stage: str, *, data: str, load: str, steps: int) -> dict[str, Any]:
    """The settings of a run of the imported model's sizes, without its output."""
    config = json.loads((folder / "hf/config.json").read_text())
    model, problems = hf_config.model_config_of(config)
    assert model is not None, problems
    return {
        "stage": stage,
        "tokenizer": str(folder / "hf"),
        "model": dataclasses.asdict(model),
        "data": {"train": data, "seq_length": SEQ_LENGTH},
        "optim": {"lr": 3e-3},
        "training": TRAINING | {"train_steps": steps},
        "checkpoint": {"load": load},
        "logging": LOGGING,
    }


def rounds_of(folder: Path, policy: str, reward_model: str) -> dict[str, Any]:
    """The settings of a round of rejection sampling, without its output."""
    return {
        "policy": policy,
        "reward_model": reward_model,
        "prompts": {
            "train": [str(folder / "prompts.jsonl")],
            "held_out": [str(folder / "held.jsonl")],
        },
        "candidates": {"per_prompt": 3, "max_new_tokens": 16, "references": False},
        "selection": {"keep_unfinished": True},
        "training": {
            "epochs": 1.0,
            "settings": {
                "data": {"seq_length": SEQ_LENGTH},
                "optim": {"lr": 3e-3},
                "training": TRAINING,
                "logging": LOGGING,
            },
        },
    }


def declare(folder: Path, steps: Sequence[str]) -> Path:
    """Writes a declared workflow of the regime, of some of its steps."""
    chats = {"stage": "sft", "tokenizer": str(folder / "hf"), "seq-length": SEQ_LENGTH}
    pairs_of = {**chats, "stage": "preference"}
    runs = {
        "sft": settings_of(folder, "sft", data="${dialogues}", load="${base}", steps=4),
        "reward": settings_of(folder, "reward", data="${preferences}", load="${sft}", steps=2),
    }
    everything = {
        "base": {"kind": "import-hf", "options": {"input": str(folder / "hf")}},
        "dialogues": {
            "kind": "preprocess",
            "options": {**chats, "input": str(folder / "chat.jsonl")},
        },
        "sft": {"kind": "train", "settings": runs["sft"]},
        "preferences": {
            "kind": "preprocess",
            "options": {**pairs_of, "input": str(folder / "pairs.jsonl")},
        },
        "reward": {"kind": "train", "settings": runs["reward"]},
        "rounds": {"kind": "rejection", "settings": rounds_of(folder, "${sft}", "${reward}")},
        "hf": {
            "kind": "export-hf",
            "options": {"checkpoint": f"${{{'rounds' if 'rounds' in steps else 'sft'}}}"},
        },
    }
    declared = {"folder": str(folder / "out"), "steps": {name: everything[name] for name in steps}}
    path = folder / "workflow.yaml"
    path.write_text(yaml.safe_dump(declared, sort_keys=False))
    return path
