"""The whole regime on tiny models of today's families, each step by its command.

A Hugging Face folder is imported, trained on in every stage and exported. What comes out has to be
the same model in transformers: logits, scores, the ids of a conversation, and where answers end.
"""

import json

import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from megatron_chimed.checkpoint.reader import CheckpointReader, newest_checkpoint
from megatron_chimed.data.datasets.indexed import IndexedDataset
from megatron_chimed.data.templates import ALL_TEMPLATES
from megatron_chimed.rejection.candidate import read_candidates
from megatron_chimed.tokenizer import load_tokenizer
from tests.integration import base_models
from tests.integration.base_models import BASE_MODELS, STOPS, configure, preprocess, run
from tests.integration.commands import assert_refused, call, train_steps
from tests.integration.rejection import read_jsonl
from tests.tiers import full_but

LANGUAGE_MODELS = ("rounds", "dpo", "lora")
RUNS = (
    # name, stage, data, what it starts from, steps, further sections
    ("pretrain", "pretrain", "text", "base", 2, {}),
    ("sft", "sft", "chat", "pretrain", 24, {"optim": {"lr": 1e-2}}),
    ("reward", "reward", "pairs", "sft", 4, {}),
    ("dpo", "dpo", "pairs", "sft", 2, {}),
    ("lora", "sft", "chat", "pretrain", 4, {"lora": {"rank": 4}, "optim": {"lr": 1e-2}}),
)
GREEDY = ("--temperature", 0, "--max-new-tokens", 24)


@pytest.fixture(scope="module", params=BASE_MODELS)
def project(request, tmp_path_factory):
    """Every stage of one family; its name, its folder, and what was said."""
    folder, said = tmp_path_factory.mktemp(request.param), {}
    base_models.make_base(folder / "hf", BASE_MODELS[request.param])
    base_models.write_data(folder)
    words = ("--input", folder / "hf", "--output", folder / "base", "--verify-logits")
    said["base"] = run("convert_checkpoint", "import-hf", *words)
    preprocess(folder, "corpus", "text")
    preprocess(folder, "chat", "chat", "--stage", "sft", *base_models.FIT)
    preprocess(folder, "pairs", "pairs", "--stage", "preference", *base_models.FIT)
    for name, stage, data, load, steps, more in RUNS:
        path = configure(folder, name, stage=stage, data=data, load=load, steps=steps, **more)
        said[name] = run("train", "--config", path)
    rounds = base_models.rounds_of(folder, f"{folder}/sft", f"{folder}/reward")
    rounds["output_dir"] = str(folder / "rounds")
    (folder / "rounds.yaml").write_text(yaml.safe_dump(rounds))
    said["rounds"] = run("rejection_sample", "--config", folder / "rounds.yaml")
    for name in (*LANGUAGE_MODELS, "reward"):
        words = ("--checkpoint", folder / name, "--output", folder / f"{name}-hf")
        said[f"{name}-hf"] = run("convert_checkpoint", "export-hf", *words, "--verify-logits")
    return request.param, folder, said


def test_a_model_stays_of_its_family_and_keeps_one_template(project):
    name, folder, said = project
    assert said["sft"].count("step ") == 24 and "agree with transformers" in said["base"]
    identity = ALL_TEMPLATES[BASE_MODELS[name].template].identity
    for stage in ("sft", "reward", "dpo", "lora", "rounds"):
        config = CheckpointReader(newest_checkpoint(folder / stage)).config
        assert config["template"]["identity"] == identity, stage
        if stage != "sft":
            assert "agree with transformers" in said.get(f"{stage}-hf", "")
            written = json.loads((folder / f"{stage}-hf/config.json").read_text())
            assert written["model_type"] == name
    base = json.loads((folder / "hf/config.json").read_text())
    tied = json.loads((folder / "dpo-hf/config.json").read_text())["tie_word_embeddings"]
    assert tied == base["tie_word_embeddings"] == (name == "qwen2")


def test_special_tokens_in_texts_end_nothing(project):
    """A document ends once; a conversation has the turns of its template and no more."""
    name, folder, _ = project
    tokenizer = load_tokenizer(folder / "hf")
    turn_end, document_end = (tokenizer.find(text) for text in STOPS)
    text, chat = (IndexedDataset(folder / part) for part in ("text", "chat"))
    for number in range(len(text)):
        assert text[number].tolist().index(document_end) == len(text[number]) - 1
    turns = 3 if ALL_TEMPLATES[BASE_MODELS[name].template].default_system else 2
    for number in range(len(chat)):
        ids = chat[number].tolist()
        assert ids.count(turn_end) == turns and document_end not in ids


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_an_export_answers_like_the_checkpoint_and_stops_where_it_does(project, name):
    _, folder, _ = project
    output = folder / f"{name}.jsonl"
    words = ("--prompts", folder / "held.jsonl", "--output", output)
    run("generate", "--checkpoint", folder / name, *words, *GREEDY)
    model = AutoModelForCausalLM.from_pretrained(folder / f"{name}-hf").eval()
    theirs = AutoTokenizer.from_pretrained(folder / f"{name}-hf")
    settings = GenerationConfig.from_pretrained(folder / f"{name}-hf")
    ends = theirs.convert_tokens_to_ids(list(STOPS))
    assert set(ends) <= set(settings.eos_token_id)
    # Rows of the embedding that only pad it: we never draw one.
    no_tokens = list(range(len(theirs), model.config.vocab_size))
    reasons = set()
    for row in read_jsonl(output):
        prompt = theirs.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        drawn = model.generate(
            **prompt, max_new_tokens=24, do_sample=False, suppress_tokens=no_tokens
        )
        drawn = drawn[0, prompt["input_ids"].shape[1] :].tolist()
        assert theirs.decode(drawn, skip_special_tokens=True) == row["completion"]
        assert (drawn[-1] in settings.eos_token_id) == (row["finish_reason"] == "stop")
        reasons.add(row["finish_reason"])
    if name == "rounds":
        assert "stop" in reasons, "fine-tuning taught where an answer ends"


def test_scores_are_those_of_the_exported_reward_model(project):
    _, folder, _ = project
    rows = [json.dumps({"prompt": f"{a}？", "completion": f"多{a}水"}) for a in ("发热", "咳嗽")]
    (folder / "answers.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    words = ("--input", folder / "answers.jsonl", "--output", folder / "scored.jsonl")
    run("score", "--checkpoint", folder / "reward", *words)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "reward-hf").eval()
    theirs = AutoTokenizer.from_pretrained(folder / "reward-hf")
    assert model.config.pad_token_id not in theirs.convert_tokens_to_ids(list(STOPS))
    for row in read_jsonl(folder / "scored.jsonl"):
        talk = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
        ids = theirs.apply_chat_template(talk, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            assert model(**ids).logits.item() == pytest.approx(row["score"], abs=1e-5)


def test_adapters_give_peft_the_logits_of_the_merged_export(project):
    import peft

    _, folder, _ = project
    for name, words in (("pretrain", ()), ("lora", ("--lora-format", "peft"))):
        output = ("--output", folder / f"{name}-peft", *words)
        run("convert_checkpoint", "export-hf", "--checkpoint", folder / name, *output)
    base = AutoModelForCausalLM.from_pretrained(folder / "pretrain-peft")
    wrapped = peft.PeftModel.from_pretrained(base, folder / "lora-peft").eval()
    merged = AutoModelForCausalLM.from_pretrained(folder / "lora-hf").eval()
    tokens = torch.randint(3, 400, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (wrapped(tokens).logits - merged(tokens).logits).abs().max() < 1e-5


def test_drawn_answers_stop_at_ids_of_the_family(project):
    _, folder, _ = project
    tokenizer = load_tokenizer(folder / "hf")
    ends = {tokenizer.find(text) for text in STOPS}
    fresh = read_candidates(folder / "rounds/round_01/samples.parquet")
    drawn = read_candidates(folder / "rounds/round_01/candidates.parquet")
    stopped = [item for item in (*fresh, *drawn) if item.finish_reason == "stop"]
    assert stopped and {item.stop_id for item in stopped} <= ends
    assert all(not ends & set(item.token_ids) for item in (*fresh, *drawn))


def test_a_run_resumes_and_goes_on(project):
    _, folder, _ = project
    done = run("train", "--config", folder / "dpo.yaml", "--training.train_steps", 3)
    assert "resumed from" in done and train_steps(folder / "dpo") == [1, 2, 3]


def test_data_of_another_tokenizer_are_refused(project, tmp_path):
    """Its vocabulary is as large, and its ids mean something else."""
    name, folder, _ = project
    (other,) = set(BASE_MODELS) - {name}
    base_models.make_base(tmp_path / "hf", BASE_MODELS[other])
    (tmp_path / "chat.jsonl").write_bytes((folder / "chat.jsonl").read_bytes())
    preprocess(tmp_path, "chat", "chat", "--stage", "sft", *base_models.FIT)
    path = folder / "sft.yaml"
    fresh = ("--config", path, "--output-dir", tmp_path / "run")
    done = call("train", *fresh, "--data.train", tmp_path / "chat")
    assert_refused(done, 78, f"{tmp_path}/chat", "tokenizer")
    done = call("train", *fresh, "--data.train", tmp_path / "chat", "--tokenizer", tmp_path / "hf")
    assert_refused(done, 78, "tokenizer")
    assert not (tmp_path / "run").exists()


SHORT = ("base", "dialogues", "sft", "hf")
WHOLE = ("base", "dialogues", "sft", "preferences", "reward", "rounds", "hf")


@pytest.mark.parametrize(
    ("name", "steps"),
    full_but([("qwen3", SHORT)], [("qwen3", SHORT), ("qwen3", WHOLE), ("qwen2", WHOLE)]),
)
def test_the_regime_as_a_declared_workflow(tmp_path, name, steps):
    base_models.make_base(tmp_path / "hf", BASE_MODELS[name])
    base_models.write_data(tmp_path)
    words = ("--config", base_models.declare(tmp_path, steps))
    said = run("run_pipeline", *words)
    assert f"done: all {len(steps)} steps" in said
    written = json.loads((tmp_path / "out/hf/config.json").read_text())
    assert written["model_type"] == name
    assert (tmp_path / "out/hf/chat_template.jinja").is_file()
    assert " run " not in run("run_pipeline", *words, "--plan"), "nothing is left to do"
