"""Sample prompts: how they are read and put, and what is refused before a run starts."""

import contextlib
import dataclasses
import json

import pytest

from megatron_chimed.data.templates import TEMPLATES
from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.observe.logger import LogConfig
from megatron_chimed.training import samples
from megatron_chimed.training.samples import open_samples
from tests.unit.generation.toy import toy_tokenizer
from tests.unit.training import run

ZIYA = TEMPLATES["ziya"]


def opened(path, text, *, template=ZIYA, stage="sft", room=128, sample_tokens=16):
    path.write_text(text, encoding="utf-8")
    config = LogConfig(sample_prompts=str(path), sample_tokens=sample_tokens)
    return open_samples(config, toy_tokenizer(), template, stage=stage, max_positions=room)


def test_lines_of_text_are_questions_in_the_template_of_the_run(tmp_path):
    found = opened(tmp_path / "p.txt", "发热？\n\n  咳嗽？\n")
    assert found.texts == ("发热？", "咳嗽？")
    tokenizer = toy_tokenizer()
    assert found.ids[0] == (tokenizer.bos_id, *tokenizer.encode("<human>:发热？\n<bot>:"))
    assert found.max_new_tokens == 16


def test_rows_are_prompts_or_conversations(tmp_path):
    rows = [
        {"prompt": "发热？", "system": "你是医生"},
        {"conversations": [{"from": "human", "value": "咳"}, {"from": "gpt", "value": "喝水"}]},
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    found = opened(tmp_path / "p.jsonl", text)
    assert found.texts == ("发热？", "咳")
    assert "你是医生" in toy_tokenizer().decode(list(found.ids[0]))
    assert "喝水" not in toy_tokenizer().decode(list(found.ids[1])), "its answer is not given away"


@pytest.mark.parametrize(
    ("name", "text"), [("p.txt", "发热\n"), ("p.jsonl", '{"prompt": "发热"}\n')]
)
def test_a_base_model_goes_on_from_the_text_itself(tmp_path, name, text):
    found = opened(tmp_path / name, text, template=None, stage="pretrain")
    tokenizer = toy_tokenizer()
    bos = [tokenizer.bos_id] if tokenizer.special.add_bos else []
    assert found.ids == ((*bos, *tokenizer.encode("发热")),)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a\n", {"stage": "reward"}, "a reward model writes no text"),
        ("\n", {}, "has no prompt"),
        ("a\n" * 33, {}, "has 33 prompts.*Keep 32 or fewer"),
        ("b\n" + "发热" * 99, {}, r"prompt 2 of .* has \d+ tokens; .* at most 112 fit"),
        ("a\n", {"sample_tokens": 128}, "at most 0 fit.*lower logging.sample_tokens"),
    ],
)
def test_what_cannot_be_answered_is_refused(tmp_path, text, options, message):
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path / "p.txt", text, **options)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.txt is not a file"):
        config = LogConfig(sample_prompts=str(tmp_path / "nothing.txt"))
        open_samples(config, toy_tokenizer(), ZIYA, stage="sft", max_positions=128)
    with pytest.raises(DataError, match=r"p\.jsonl:1"):
        opened(tmp_path / "p.jsonl", '{"prompt": 3}\n')
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"b\.txt is not UTF-8"):
        config = LogConfig(sample_prompts=str(tmp_path / "b.txt"))
        open_samples(config, toy_tokenizer(), ZIYA, stage="sft", max_positions=128)


def test_an_answer_ends_at_the_stops_of_template_and_tokenizer(tmp_path, monkeypatch):
    asked = opened(tmp_path / "p.txt", "a\n")
    asked = dataclasses.replace(asked, texts=(), ids=(), stop_ids=(7, 9))
    seen = []

    def remember(session, requests, sampling):
        seen.append(sampling.stop_token_ids)
        return iter(())

    monkeypatch.setattr(samples, "stream_completions", remember)
    monkeypatch.setattr(samples, "gather_replicas", lambda session, found: found)
    nothing = contextlib.nullcontext()
    monkeypatch.setattr(samples, "live_session", lambda *args, **options: nothing)
    assert samples.answer_samples(asked, [], None) == []
    assert seen == [(7, 9, *toy_tokenizer().stop_ids)]


def test_nothing_is_asked_for_without(tmp_path):
    assert open_samples(LogConfig(), toy_tokenizer(), ZIYA, stage="sft", max_positions=128) is None


def test_prompts_without_validation_data_are_refused(tmp_path):
    with run.job(tmp_path) as job:
        logging = run.dataclasses.replace(job.config.logging, sample_prompts="p.txt")
        config = run.dataclasses.replace(job.config, logging=logging)
        datasets = run.dataclasses.replace(job.datasets, valid=None)
        job = run.dataclasses.replace(job, config=config, datasets=datasets)
        with pytest.raises(ConfigError, match=r"sample_prompts is p.txt, but there are no validat"):
            run.loop.train(job, run_id="test", starts_from="")
