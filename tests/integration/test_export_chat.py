"""What an export tells transformers about talking: chat template, padding, where to stop."""

import dataclasses
import json
import shutil

import pytest
import torch
from sentencepiece import sentencepiece_model_pb2 as pb2
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaForSequenceClassification,
)

from megatron_chimed.checkpoint.reader import open_checkpoint
from megatron_chimed.conversion import hf, hf_config
from megatron_chimed.conversion.hf_generation import inherited_section, stop_ids
from megatron_chimed.conversion.hf_tokenizer import TokenizerExport
from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.templates import TEMPLATES, encode_prompts, load_template, store_template
from megatron_chimed.engine import ParallelConfig
from megatron_chimed.errors import CheckpointError, DataError
from megatron_chimed.generation import SamplingConfig, generate, open_session
from megatron_chimed.tokenizer import SentencePieceTokenizer, load_tokenizer
from megatron_chimed.tokenizer.saving import save_tokenizer
from megatron_chimed.training.run_inputs import open_inputs
from tests.integration.commands import MODEL, call, read_run_config
from tests.integration.hf_folders import edit_json, make_hf
from tests.integration.preferences import SEQ_LENGTH, configure, preprocess, train, write_jsonl
from tests.integration.test_convert_reward import make_scorer
from tests.unit.tokenizer.samples import train_model

PIECES = train_model()
TALK = [
    {"role": "user", "content": "发热怎么办？"},
    {"role": "assistant", "content": "多饮水。"},
    {"role": "user", "content": " 谢谢\n"},
]
OURS = Conversation((Turn("发热怎么办？", "多饮水。"), Turn(" 谢谢\n", "")))


def make_source(folder, template=None, make=make_hf, **changes):
    """A Hugging Face folder with a tokenizer, trained with a template if one is given."""
    make(folder, **{"vocab_size": 402, **changes})
    size = SentencePieceTokenizer(PIECES).model_size
    save_tokenizer(SentencePieceTokenizer(PIECES, {"<human>": size, "<bot>": size + 1}), folder)
    if template is not None:
        edit_json(folder / "config.json", megatron_chimed={"template": store_template(template)})
    return folder


def convert(folder, **options):
    hf.import_hf(folder, folder.parent / "ckpt")
    return hf.export_hf(folder.parent / "ckpt", folder.parent / "out", **options)


@pytest.mark.parametrize("name", ["ziya", "chimed", "zhongjing", "mine.yaml"])
def test_an_export_carries_the_template_of_training(tmp_path, name):
    (tmp_path / "mine.yaml").write_text(
        'name: mine\nprompt: "Q: {question}\\nA:"\nseparator: "\\n\\n"\nbos: first\n'
    )
    template = load_template(tmp_path / name if name == "mine.yaml" else name)
    done = convert(make_source(tmp_path / "hf", template))
    assert f"its chat template gives the ids of template {template.name!r}" in done.notes
    tokenizer = load_tokenizer(tmp_path / "out")
    (expected,) = encode_prompts(tokenizer, template, [OURS])
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.apply_chat_template(TALK, add_generation_prompt=True)["input_ids"] == expected
    config = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert config["chat_template"] == (tmp_path / "out/chat_template.jinja").read_text()
    # And it comes back with it.
    hf.import_hf(tmp_path / "out", tmp_path / "again")
    assert open_checkpoint(tmp_path / "again").config["template"]["identity"] == template.identity


def test_a_base_model_has_no_chat_template_and_none_is_written_where_none_is_wanted(tmp_path):
    convert(make_source(tmp_path / "hf"))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template is None
    assert not (tmp_path / "out/chat_template.jinja").exists()
    (tmp_path / "two").mkdir()
    convert(
        make_source(tmp_path / "two/hf", TEMPLATES["ziya"]),
        tokenizer=TokenizerExport(with_chat_template=False),
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "two/out").chat_template is None


def test_a_chat_template_of_another_make_is_noted_where_it_is_lost(tmp_path):
    source = make_source(tmp_path / "hf")
    edit_json(source / "tokenizer_config.json", chat_template="{{ messages }}")
    done = hf.import_hf(source, tmp_path / "ckpt")
    assert "its chat template is not one of ours: an export will not have it" in done.notes
    assert hf.import_hf(make_source(tmp_path / "b/hf"), tmp_path / "b/ckpt").notes == ()


def test_a_template_that_one_text_cannot_show_fails_the_export(tmp_path):
    (tmp_path / "mine.yaml").write_text('name: mine\nprompt: "Q: {question} A: "\n')
    hf.import_hf(
        make_source(tmp_path / "hf", load_template(tmp_path / "mine.yaml")), tmp_path / "ckpt"
    )
    words = ["export-hf", "--checkpoint", tmp_path / "ckpt", "--output", tmp_path / "out"]
    done = call("convert_checkpoint", *words)
    assert done.code == 74
    assert "template 'mine' refuses" in done.err and "ends with a space" in done.err, done.err
    assert len(done.err.splitlines()) == 1 and not (tmp_path / "out").exists()
    done = call("convert_checkpoint", *words, "--without-chat-template")
    assert done.code == 0
    assert "it has no chat template, as asked, and was trained with 'mine'" in done.out


def test_padding_is_one_id_everywhere_and_batches_give_the_same_tokens(tmp_path):
    convert(make_source(tmp_path / "hf", TEMPLATES["ziya"]))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    pads = {theirs.pad_token_id, model.config.pad_token_id, model.generation_config.pad_token_id}
    assert pads == {0} and theirs.eos_token_id == 2 and theirs.padding_side == "left"
    talks = [TALK, TALK[:1], [{"role": "user", "content": "患者男，35岁，咳嗽3天" * 4}]]
    batch = theirs.apply_chat_template(
        talks, add_generation_prompt=True, padding=True, return_tensors="pt"
    )
    assert (batch["attention_mask"] == 0).any()
    together = model.generate(**batch, max_new_tokens=12, do_sample=False)
    width = batch["input_ids"].shape[1]
    for talk, row in zip(talks, together, strict=True):
        alone = theirs.apply_chat_template([talk], add_generation_prompt=True, return_tensors="pt")
        tokens = model.generate(**alone, max_new_tokens=12, do_sample=False)[0]
        tokens = tokens[alone["input_ids"].shape[1] :].tolist()
        assert row[width:].tolist()[: len(tokens)] == tokens


def test_a_pad_that_is_the_end_of_sequence_is_replaced(tmp_path):
    source = make_source(tmp_path / "hf", pad_token_id=2)
    edit_json(source / "tokenizer_config.json", pad_token="</s>")
    edit_json(source / "special_tokens_map.json", pad_token="</s>")
    convert(source)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (theirs.pad_token_id, theirs.eos_token_id) == (0, 2)
    assert GenerationConfig.from_pretrained(tmp_path / "out").pad_token_id == 0


SETTINGS = {
    "bos_token_id": 1,
    "eos_token_id": [2, 7],
    "pad_token_id": 2,
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.9,
    "_from_model_config": True,
}


def test_the_sources_generation_config_is_kept_with_all_stops(tmp_path):
    source = make_source(tmp_path / "hf")
    (source / "generation_config.json").write_text(json.dumps(SETTINGS))
    convert(source)
    found = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert found == {key: SETTINGS[key] for key in SETTINGS if key != "_from_model_config"} | {
        "pad_token_id": 0
    }
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == model.config.eos_token_id == [2, 7]
    hf.import_hf(tmp_path / "out", tmp_path / "again")
    assert stop_ids(open_checkpoint(tmp_path / "again").config, (2,)) == (2, 7)
    # A stage that starts from the checkpoint takes it along, whatever else cannot be read.
    inherited = inherited_section(tmp_path / "nothing", None, tmp_path / "ckpt")
    assert stop_ids(inherited, (2,)) == (2, 7)
    assert inherited["hugging_face"]["generation_config"]["temperature"] == 0.6
    assert inherited_section(tmp_path / "nothing") == {}


def opened_samples(config, folder):
    """The sample prompts of a run, as it answers them at each validation."""
    (folder / "asked.txt").write_text("发热？\n", encoding="utf-8")
    words = ("--config", config, "--logging.sample_prompts", folder / "asked.txt")
    return open_inputs(read_run_config(*words, "--logging.sample_tokens", 8), 1).samples


def test_training_hands_the_settings_on_and_the_template_comes_from_its_data(tmp_path):
    sizes = {theirs: MODEL[ours] for theirs, ours in hf_config._SIZES.items() if ours in MODEL}
    make_hf(tmp_path / "hf", vocab_size=400, max_position_embeddings=SEQ_LENGTH, **sizes)
    (tmp_path / "tokenizer.model").write_bytes(PIECES)
    (tmp_path / "hf/tokenizer.model").write_bytes(PIECES)
    (tmp_path / "hf/generation_config.json").write_text(json.dumps(SETTINGS))
    hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")
    chats = [{"instruction": f"{text}？", "input": "", "output": "口服"} for text in "发热咳嗽患者"]
    preprocess(tmp_path, write_jsonl(tmp_path / "chat.jsonl", chats), "chat", stage="sft")
    for steps in (1, 2):
        config = configure(
            tmp_path,
            "sft",
            stage="sft",
            data={"train": f"{tmp_path}/chat"},
            training={"train_steps": steps},
            checkpoint={"load": str(tmp_path / "ckpt")},
        )
        assert opened_samples(config, tmp_path).stop_ids == (2, 7)
        train(config)
        # A run that goes on needs what it started from no more.
        shutil.rmtree(tmp_path / "ckpt", ignore_errors=True)
    hf.export_hf(tmp_path / "sft", tmp_path / "out")
    found = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (found.eos_token_id, found.pad_token_id, found.temperature) == ([2, 7], 0, 0.6)
    (expected,) = encode_prompts(SentencePieceTokenizer(PIECES), TEMPLATES["ziya"], [OURS])
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.apply_chat_template(TALK, add_generation_prompt=True)["input_ids"] == expected


def test_stops_of_the_config_alone_are_kept_and_the_tokenizers_is_among_them(tmp_path):
    convert(make_source(tmp_path / "hf", eos_token_id=[7, 9]))
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [2, 7, 9]


def test_our_generation_stops_at_each_of_them(tmp_path):
    source = make_source(tmp_path / "hf")
    hf.import_hf(source, tmp_path / "plain")
    with open_session(tmp_path / "plain", ParallelConfig(), world=(0, 1, 0)) as session:
        assert session.stop_ids == (2,)
        sampling = SamplingConfig(max_new_tokens=8, temperature=1.0)
        (free,) = generate(session, [[1, 50, 60]], sampling)
    third = free.token_ids[2]
    assert third not in free.token_ids[:2]
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, third]}))
    hf.import_hf(source, tmp_path / "ckpt")
    with open_session(tmp_path / "ckpt", ParallelConfig(), world=(0, 1, 0)) as session:
        assert session.stop_ids == (2, third)
        sampling = dataclasses.replace(sampling, stop_token_ids=session.stop_ids)
        (found,) = generate(session, [[1, 50, 60]], sampling)
    assert (found.token_ids, found.finish_reason) == (free.token_ids[:2], "stop")
    assert found.stop_id == third and free.stop_id is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eos_token_id": "</s>"}, "eos_token_id of generation_config.json is '</s>', not an id"),
        ({"eos_token_id": [2, None, 1.5]}, r"is \[2, None, 1.5\], not an id"),
        ({"eos_token_id": [2, 402]}, r"is \[2, 402\], but the model has 402 ids"),
        ({"bos_token_id": True}, "bos_token_id of generation_config.json is True, not an id"),
        ({"top_p": float("nan")}, "generation_config.json is not valid JSON: NaN"),
        ([], "generation_config.json holds a list, not a JSON object"),
    ],
)
def test_a_generation_config_that_is_none_is_refused(tmp_path, settings, message):
    source = make_source(tmp_path / "hf")
    (source / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match=message):
        hf.import_hf(source, tmp_path / "ckpt")


def test_a_reward_model_has_chat_template_and_padding_too(tmp_path):
    source = make_source(tmp_path / "hf", TEMPLATES["zhongjing"], make_scorer, pad_token_id=None)
    convert(source)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = LlamaForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert theirs.pad_token_id == model.config.pad_token_id == 0
    talks = [TALK[:2], [*TALK, {"role": "assistant", "content": "不客气，好好休息。"}]]
    batch = theirs.apply_chat_template(talks, padding=True, return_tensors="pt")
    with torch.no_grad():
        together = model(**batch).logits
        for talk, score in zip(talks, together, strict=True):
            alone = theirs.apply_chat_template([talk], return_tensors="pt")
            assert alone["input_ids"][0, -1] == 2
            assert torch.allclose(model(**alone).logits[0], score, atol=1e-5)


def test_a_spoiled_chat_template_leaves_nothing(tmp_path, monkeypatch):
    from megatron_chimed.data.templates import jinja_export

    monkeypatch.setattr(jinja_export, "_BOS", "")
    with pytest.raises(CheckpointError, match="chat template made of template 'ziya' gives"):
        convert(make_source(tmp_path / "hf", TEMPLATES["ziya"]))
    assert not (tmp_path / "out").exists()


def circular_model():
    """Two levels of tied pieces: no fast tokenizer of transformers gives their ids."""
    proto = pb2.ModelProto.FromString(PIECES)
    for piece, score in (("口服", 0.0), ("热发", -5000.0), ("发热", -5000.0)):
        known = [entry for entry in proto.pieces if entry.piece == piece]
        (known[0] if known else proto.pieces.add(piece=piece)).score = score
    return proto.SerializeToString()


def test_an_inexact_tokenizer_is_refused_and_left_out_on_request(tmp_path):
    make_hf(tmp_path / "hf", vocab_size=410)
    (tmp_path / "hf/tokenizer.model").write_bytes(circular_model())
    hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")
    assert load_tokenizer(open_checkpoint(tmp_path / "ckpt").tokenizer_folder).find("热发")
    words = ["export-hf", "--checkpoint", tmp_path / "ckpt", "--output", tmp_path / "out"]
    done = call("convert_checkpoint", *words)
    assert done.code == 65 and "'热发'" in done.err and "--weights-only" in done.err, done.err
    assert len(done.err.splitlines()) == 1 and not (tmp_path / "out").exists()
    done = call("convert_checkpoint", *words, "--weights-only")
    assert done.code == 0 and "weights only, as asked" in done.out
    assert not [path for path in (tmp_path / "out").iterdir() if "token" in path.name]
    assert json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"] == 2


def test_the_texts_of_a_file_are_compared_too(tmp_path):
    hf.import_hf(make_source(tmp_path / "hf"), tmp_path / "ckpt")
    words = ["export-hf", "--checkpoint", tmp_path / "ckpt", "--output", tmp_path / "out"]
    (tmp_path / "texts.txt").write_text("发热</s>\n", encoding="utf-8")  # transformers' own token
    done = call("convert_checkpoint", *words, "--check-texts", tmp_path / "texts.txt")
    assert done.code == 65 and "disagrees with our tokenizer on '发热</s>'" in done.err
    done = call("convert_checkpoint", *words, "--check-texts", tmp_path / "none.txt")
    assert done.code == 65 and "none.txt cannot be read" in done.err and "Give a UTF-8" in done.err
    both = ("--check-texts", tmp_path / "texts.txt", "--weights-only")
    assert "omit one" in call("convert_checkpoint", *words, *both).err
    (tmp_path / "texts.txt").write_text("发热\n咳嗽\n", encoding="utf-8")
    assert call("convert_checkpoint", *words, *both[:2]).code == 0
