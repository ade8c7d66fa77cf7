"""LoRA through the commands: adapters are trained, merged, or exported for PEFT."""

import json
import shutil

import pytest
import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from megatron_chimed.checkpoint.adapters import stored_lora_config
from megatron_chimed.checkpoint.reader import open_checkpoint
from megatron_chimed.conversion.hf_verify import one_rank_model
from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.templates import TEMPLATES, encode_prompts
from megatron_chimed.tokenizer import SentencePieceTokenizer
from tests.integration.commands import call
from tests.integration.preferences import (
    BAD,
    GOOD,
    configure,
    make_project,
    train,
    write_jsonl,
)
from tests.unit.tokenizer.samples import train_model

LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.05}
TARGETS = {"sft": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]}
TOKENIZER = SentencePieceTokenizer(train_model())
DATA = {"sft": "chat", "reward": "train", "dpo": "train"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A language model `sft`, and a run with adapters of each stage that starts from it."""
    folder = make_project(tmp_path_factory.mktemp("lora"))
    for stage, data in DATA.items():
        targets = {"targets": TARGETS[stage]} if stage in TARGETS else {}
        path = configure(
            folder,
            f"lora-{stage}",
            stage=stage,
            data={"train": f"{folder}/{data}"},
            optim={"lr": 3e-2, "min_lr": 3e-2},
            checkpoint={"load": str(folder / "sft")},
            lora=LORA | targets,
        )
        said = train(path)
        assert f"weights from {folder}/sft/checkpoints/iter_0000006, fresh adapters" in said
    export(folder / "sft", folder / "base-hf")
    return folder


def export(checkpoint, output, *words):
    done = call(
        "convert_checkpoint", "export-hf", "--checkpoint", checkpoint, "--output", output, *words
    )
    assert done.code == 0, done.err
    return done.out


def unmerged_logits(checkpoint, tokens):
    """What the model with its adapters beside the weights gives: [b, s, v], or scores [b, s]."""
    reader = open_checkpoint(checkpoint)
    lora = stored_lora_config(reader)
    with one_rank_model(reader, seq_length=tokens.shape[1], lora=lora) as (chunk, _):
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        with torch.no_grad():
            output = chunk(tokens, positions)
    return output.transpose(0, 1)[..., : chunk.model_config.vocab_size]


def probe(vocab_size):
    return torch.randint(3, vocab_size, (2, 24), generator=torch.Generator().manual_seed(0))


def logits_of(model, tokens):
    with torch.no_grad():
        return model.eval()(tokens).logits


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_merged_and_peft_exports_give_the_logits_of_the_unmerged_model(project, stage):
    import peft

    run, merged = project / f"lora-{stage}", project / f"merged-{stage}"
    assert "logits agree with transformers" in export(run, merged, "--verify-logits")
    said = export(run, project / f"peft-{stage}", "--lora-format", "peft")
    assert f"they belong to the weights of {project / 'sft'}" in said

    base = LlamaForCausalLM.from_pretrained(project / "base-hf")
    tokens = probe(base.config.vocab_size)
    ours, without = unmerged_logits(run, tokens), logits_of(base, tokens)
    assert (ours - without).abs().max() > 0.1, "the adapters add something"
    theirs = logits_of(LlamaForCausalLM.from_pretrained(merged), tokens)
    assert (ours - theirs).abs().max() < 1e-5
    wrapped = peft.PeftModel.from_pretrained(base, project / f"peft-{stage}")
    assert (ours - logits_of(wrapped, tokens)).abs().max() < 1e-5
    found = peft.get_peft_model_state_dict(wrapped)
    stored = open_checkpoint(run)
    names = {key for key in stored.tensors if "lora" in key and key.startswith("model.")}
    assert {key.removeprefix("base_model.model.") for key in found} == names, "none was left out"
    ours = encode_prompts(TOKENIZER, TEMPLATES["ziya"], [Conversation((Turn("发热？", ""),))])
    for folder in (merged, project / f"peft-{stage}"):
        theirs = AutoTokenizer.from_pretrained(folder)
        talk = [[{"role": "user", "content": "发热？"}]]
        assert theirs.apply_chat_template(talk, add_generation_prompt=True)["input_ids"] == ours
        assert theirs.pad_token_id == GenerationConfig.from_pretrained(folder).pad_token_id == 0


def test_a_reward_models_head_goes_with_its_adapters(project):
    import peft

    run = project / "lora-reward"
    assert "scores agree with transformers" in export(
        run, project / "merged-reward", "--verify-logits"
    )
    export(run, project / "peft-reward", "--lora-format", "peft")
    merged = LlamaForSequenceClassification.from_pretrained(project / "merged-reward")
    base = LlamaForSequenceClassification.from_pretrained(
        project / "base-hf", num_labels=1, pad_token_id=merged.config.pad_token_id
    )
    tokens = probe(base.config.vocab_size)
    ours = unmerged_logits(run, tokens)[:, -1:]
    assert (ours - logits_of(merged, tokens)).abs().max() < 1e-5
    wrapped = peft.PeftModel.from_pretrained(base, project / "peft-reward")
    assert (ours - logits_of(wrapped, tokens)).abs().max() < 1e-5


def test_scores_are_those_of_the_merged_model(project, tmp_path):
    export(project / "lora-reward", tmp_path / "hf")
    words = ("import-hf", "--input", tmp_path / "hf", "--output", tmp_path / "merged")
    assert call("convert_checkpoint", *words).code == 0
    rows = [{"prompt": "发热？", "completion": text} for text in (*GOOD, *BAD)]
    answers = write_jsonl(tmp_path / "in.jsonl", rows)
    found = []
    for checkpoint in (project / "lora-reward", tmp_path / "merged"):
        words = ("--checkpoint", checkpoint, "--input", answers, "--output", tmp_path / "out.jsonl")
        done = call("score", *words, "--overwrite")
        assert done.code == 0, done.err
        scored = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
        found.append([json.loads(row)["score"] for row in scored])
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert min(found[0][:2]) > max(found[0][2:]), "what it learned is in its adapters"


def test_adapters_are_imported_once_peft_has_merged_them(project, tmp_path):
    import peft

    export(project / "lora-sft", tmp_path / "adapters", "--lora-format", "peft")
    words = ("import-hf", "--output", tmp_path / "back", "--input")
    done = call("convert_checkpoint", *words, tmp_path / "adapters")
    assert done.code == 65
    assert "holds LoRA adapters of PEFT (adapter_config.json)" in done.err
    assert not (tmp_path / "back").exists()

    base = LlamaForCausalLM.from_pretrained(project / "base-hf")
    wrapped = peft.PeftModel.from_pretrained(base, tmp_path / "adapters")
    wrapped.merge_and_unload().save_pretrained(tmp_path / "merged")
    shutil.copy(project / "base-hf/tokenizer.model", tmp_path / "merged")
    done = call("convert_checkpoint", *words, tmp_path / "merged")
    assert done.code == 0, done.err
    tokens = probe(base.config.vocab_size)
    theirs = unmerged_logits(tmp_path / "back", tokens)
    assert (unmerged_logits(project / "lora-sft", tokens) - theirs).abs().max() < 1e-5


def test_generation_reads_adapters_as_part_of_the_weights(project, tmp_path):
    export(project / "lora-dpo", tmp_path / "hf")
    words = ("import-hf", "--input", tmp_path / "hf", "--output", tmp_path / "merged")
    assert call("convert_checkpoint", *words).code == 0
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "发热患者体"}])
    found = []
    for checkpoint in (project / "lora-dpo", tmp_path / "merged", project / "sft"):
        words = ("--prompts", prompts, "--output", tmp_path / f"{len(found)}.jsonl")
        words = (*words, "--max-new-tokens", 12)
        done = call("generate", "--checkpoint", checkpoint, *words)
        assert done.code == 0, done.err
        found.append((tmp_path / f"{len(found)}.jsonl").read_text(encoding="utf-8"))
    assert found[0] == found[1] != found[2]


def test_what_cannot_be_is_refused(project, tmp_path):
    words = ("export-hf", "--output", tmp_path / "out", "--lora-format", "peft", "--checkpoint")
    done = call("convert_checkpoint", *words, project / "sft")
    assert done.code == 74
    assert "has no adapters: all its weights were trained" in done.err
    done = call("convert_checkpoint", *words, project / "lora-sft", "--verify-logits")
    assert done.code == 78
    assert "--verify-logits compares whole models" in done.err
    path = configure(project, "refused", stage="sft", data={"train": f"{project}/chat"})
    done = call("train", "--config", path, "--lora.rank", 4)
    assert done.code == 78
    assert "lora.rank is 4: adapters are trained beside the frozen weights" in done.err
    done = call("train", "--config", path, "--lora.rank", 4, "--lora.targets", '["lm_head"]')
    assert done.code == 78
    assert "lm_head" in done.err


def test_a_plan_has_gradients_of_adapters_alone(project):
    found = []
    for words in ((), ("--lora.rank", 0)):
        done = call("train", "--config", project / "lora-dpo.yaml", "--dry-run", *words)
        assert done.code == 0, done.err
        (row,) = (line.split() for line in done.out.splitlines() if line.split()[1:2] == ["0-1"])
        found.append(row[3:6])  # weights, gradients, Adam
    assert found == [["0.2M", "0.0M", "0.0M"], ["0.2M", "0.2M", "0.4M"]]
