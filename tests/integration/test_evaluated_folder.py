"""A Hugging Face folder evaluated by transformers gives what our checkpoint gives."""

import dataclasses
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification

from megatron_chimed.config.inference import InferenceConfig
from megatron_chimed.conversion import hf
from megatron_chimed.conversion.hf_tokenizer import TokenizerExport
from megatron_chimed.data.templates import TEMPLATES
from megatron_chimed.engine import use_device
from megatron_chimed.errors import CheckpointError, ConfigError, UnsafeInputError
from megatron_chimed.evaluation.config import EvaluationConfig, ModelEntry
from megatron_chimed.evaluation.models.opening import check_models, open_model, source_identity
from megatron_chimed.evaluation.requests import (
    AnswerRequest,
    LikelihoodRequest,
    Refused,
    TaskPrompt,
    TextRequest,
)
from megatron_chimed.generation.workers import Workers
from megatron_chimed.tokenizer import load_tokenizer
from tests.integration.hf_folders import edit_json
from tests.integration.test_export_chat import make_source

INFERENCE = InferenceConfig(precision="fp32", max_batch=3, batch_tokens=200)
SHOTS = (("发热\n答案：", " A\n\n"), ("咳嗽\n答案：", " B\n\n"))
CHOICES = [
    LikelihoodRequest(
        prompt=TaskPrompt(head="选择题\n\n", shots=SHOTS, question=question),
        continuations=continuations,
    )
    for question, continuations in [
        ("头痛\n答案：", (" A", " B", " C")),
        ("胃痛，恶心，呕吐三天。\n答案： ", ("多饮水", "休息", "A")),
    ]
]
CHAT = TaskPrompt(question="头痛怎么办？", shots=(("发热怎么办？", "多饮水。"),), is_chat=True)
TEXTS = ["患者发热伴咳嗽三天。" * 12, "头痛"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The same model as our checkpoint and as an exported folder, both opened."""
    base = tmp_path_factory.mktemp("models")
    source = make_source(base / "source", TEMPLATES["ziya"])
    hf.import_hf(source, base / "ckpt")
    hf.export_hf(base / "ckpt", base / "out", tokenizer=TokenizerExport())
    use_device("cpu")
    config = EvaluationConfig(
        output_dir="out",
        models=(
            ModelEntry(name="shards", checkpoint=str(base / "ckpt")),
            ModelEntry(name="folder", folder=str(base / "out")),
            ModelEntry(name="ours", folder=str(base / "out"), template="ziya"),
        ),
        tasks=({},),
        inference=INFERENCE,
    )
    return config


def responses(config, ask):
    found = []
    for entry in config.models:
        workers = Workers(rank=0, size=1, local_rank=0, inference=INFERENCE)
        with open_model(entry, config, workers) as model:
            found.append(ask(model))
    return found


def test_likelihoods_of_choices_are_equal(models):
    chat = LikelihoodRequest(prompt=CHAT, continuations=("多饮水。", "A", "B"))
    shards, *folders = responses(models, lambda model: model.likelihoods([*CHOICES, chat]))
    for folder in folders:
        for ours, theirs in zip(shards, folder, strict=True):
            assert theirs.log_probs == pytest.approx(ours.log_probs, abs=1e-4)
            assert theirs.num_tokens == ours.num_tokens and theirs.num_shots == ours.num_shots


def test_answers_are_equal(models):
    requests = [
        AnswerRequest(prompt=CHAT, max_new_tokens=12),
        AnswerRequest(prompt=CHOICES[0].prompt, max_new_tokens=8),
        AnswerRequest(prompt=CHOICES[1].prompt, max_new_tokens=8, stop_strings=("。",)),
        AnswerRequest(prompt=TaskPrompt(question="痛" * 400), max_new_tokens=8),
        AnswerRequest(prompt=TaskPrompt(question="咳嗽"), max_new_tokens=5),
    ]
    shards, *folders = responses(models, lambda model: model.answers(requests))
    for folder in folders:
        assert folder == shards
    assert isinstance(shards[3], Refused)


def test_sampled_answers_depend_on_the_seed_alone(models):
    def draw(model, seed):
        torch.rand(1)  # the state of torch's generator means nothing
        request = AnswerRequest(
            prompt=CHAT, max_new_tokens=12, temperature=1.0, top_p=0.9, seed=seed
        )
        return [answer.text for answer in model.answers([request, request])]

    only = dataclasses.replace(models, models=models.models[1:2])
    ((first, other, again),) = responses(only, lambda m: [draw(m, seed) for seed in (1, 2, 1)])
    assert first == again != other
    assert first[0] != first[1]


def test_texts_are_equal_by_windows_and_each_token_counts_once(models):
    def ask(model):
        requests = [
            TextRequest(prompt=TaskPrompt(question=text), window=40, stride=20) for text in TEXTS
        ]
        return model.text_likelihoods(requests)

    shards, *folders = responses(models, ask)
    for folder in folders:
        for ours, theirs in zip(shards, folder, strict=True):
            assert theirs.log_prob == pytest.approx(ours.log_prob, rel=1e-5)
            assert (theirs.num_tokens, theirs.num_bytes) == (ours.num_tokens, ours.num_bytes)
    assert [text.num_bytes for text in shards] == [len(text.encode()) for text in TEXTS]
    tokenizer = load_tokenizer(models.models[1].folder)
    assert [text.num_tokens for text in shards] == list(map(len, tokenizer.encode_batch(TEXTS)))
    # The short text in one window, by transformers alone.
    model = AutoModelForCausalLM.from_pretrained(models.models[1].folder)
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(TEXTS[1])]])
    with torch.no_grad():
        log_probs = model(ids).logits[0, :-1].log_softmax(-1)
    expected = log_probs.gather(1, ids[0, 1:, None]).sum().item()
    assert shards[1].log_prob == pytest.approx(expected, abs=1e-4)


def test_indexed_ids_need_the_tokenizer_that_made_them(models):
    tokenizer = load_tokenizer(models.models[1].folder)
    ids = tuple(tokenizer.encode("发热伴咳嗽"))
    prompt = TaskPrompt(question="document 0")

    def ask(model):
        return model.text_likelihoods(
            [
                TextRequest(prompt=prompt, ids=ids, tokenizer=tokenizer.identity),
                TextRequest(prompt=prompt, ids=ids, tokenizer="another"),
                TextRequest(prompt=TaskPrompt(question="发热伴咳嗽")),
            ]
        )

    for indexed, refused, text in responses(models, ask):
        assert indexed.log_prob == pytest.approx(text.log_prob, abs=1e-4)
        assert indexed.num_bytes == text.num_bytes
        assert refused == Refused(reason="indexed with another tokenizer than the model's")


def test_a_folder_is_identified_by_its_files(models, tmp_path):
    entry = models.models[1]
    before = source_identity(entry, models)
    copy = shutil.copytree(entry.folder, tmp_path / "copy")
    moved = dataclasses.replace(entry, folder=str(copy))
    assert source_identity(moved, models) == before
    edit_json(copy / "generation_config.json", temperature=0.5)
    assert source_identity(moved, models) != before


def test_several_ranks_are_refused(models):
    with pytest.raises(ConfigError, match="folder is a folder.*4 ranks"):
        check_models(dataclasses.replace(models, models=models.models[1:]), 4)


def _remove_config(folder):
    (folder / "config.json").unlink()


def _add_adapter(folder):
    (folder / "adapter_config.json").write_text("{}")


def _pickle(folder):
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def _scorer(folder):
    edit_json(folder / "config.json", architectures=[LlamaForSequenceClassification.__name__])


def _own_code(folder):
    edit_json(
        folder / "config.json",
        model_type="mine",
        auto_map={"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"},
    )
    (folder / "mine.py").write_text("raise SystemExit('code of a folder was run')")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (_remove_config, ConfigError, "has no config.json"),
        (_add_adapter, ConfigError, "Merge the adapter"),
        (_pickle, UnsafeInputError, "pickles"),
        (_scorer, ConfigError, "not a language model"),
        (_own_code, CheckpointError, "Code that a folder brings along is not run"),
    ],
)
def test_a_folder_that_cannot_be_used_is_explained(models, tmp_path, damage, error, message):
    copy = shutil.copytree(models.models[1].folder, tmp_path / "copy")
    damage(copy)
    entry = ModelEntry(name="bad", folder=str(copy))
    with pytest.raises(error, match=message):
        with open_model(entry, models, None):
            pass
