"""Ids and masks of conversations, against plain implementations of the published formulas."""

import dataclasses
import json
import re

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_chimed.data.formats.example import Conversation, Ranking, Turn
from megatron_chimed.data.templates import (
    TEMPLATES,
    Dropped,
    Encoded,
    encode_conversations,
    encode_prompts,
    encode_rankings,
)
from megatron_chimed.tokenizer import SentencePieceTokenizer
from megatron_chimed.tokenizer.saving import save_tokenizer
from tests.unit.tokenizer.samples import train_model

MODEL = train_model()
ADDED = {"<human>": 400, "<bot>": 401}
TOKENIZER = SentencePieceTokenizer(MODEL, ADDED)
BOS, EOS = 1, 2

DIALOGUES = (
    (
        ("发热 3 天", "体温38.5℃，多饮水。"),
        ("吃什么药？", "阿莫西林胶囊 0.5g"),
        (" 谢谢 ", "不客气"),
    ),
    (("血压 120/80 mmHg", "正常。"),),
    (("问{question}", "答</s>不是结束"), ("", "空问题")),
)


class Plain:
    """Sentencepiece with literal added tokens, and the three formulas, as lists."""

    def __init__(self, model, added):
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.added = added

    def ids(self, text):
        parts = re.split("(<human>|<bot>)", text)
        return [
            index
            for part in parts
            if part
            for index in ([self.added[part]] if part in self.added else self.processor.encode(part))
        ]

    def turn(self, name, number, question):
        if name == "chimed":
            return self.ids(f"[human]:{question}\n[bot]:")
        prompt = self.ids(f"<human>:{question}\n<bot>:")
        if name == "ziya":
            return prompt
        return [BOS, *prompt] if number == 0 else [*self.ids("\n"), BOS, *prompt]

    def conversation(self, name, turns):
        ids, labels = [], []
        for number, (question, answer) in enumerate(turns):
            prompt = self.turn(name, number, question)
            reply = [*self.ids(answer), EOS]
            ids += prompt + reply
            labels += [-100] * len(prompt) + reply
        return ids, labels


def conversation(turns, system=""):
    return Conversation(tuple(Turn(*turn) for turn in turns), system=system)


def encode(name, *dialogues, **options):
    examples = [conversation(turns) for turns in dialogues]
    return encode_conversations(TOKENIZER, TEMPLATES[name], examples, **options)


def labels_of(encoded):
    return np.where(encoded.mask == 1, encoded.ids.astype(int), -100).tolist()


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_and_targets_are_those_of_the_published_formula(name):
    plain = Plain(MODEL, ADDED)
    for turns, encoded in zip(DIALOGUES, encode(name, *DIALOGUES), strict=True):
        ids, labels = plain.conversation(name, turns)
        assert encoded.ids.tolist() == ids
        assert labels_of(encoded) == labels
        assert (encoded.ids.dtype, encoded.mask.dtype) == (np.uint16, np.uint8)
        assert (encoded.end_tokens, encoded.cut, encoded.dropped_turns) == (len(turns), False, 0)


@pytest.mark.parametrize("name", TEMPLATES)
def test_transformers_gives_the_same_ids(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    save_tokenizer(TOKENIZER, tmp_path)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    encoded = encode(name, *DIALOGUES)
    for turns, mine in zip(DIALOGUES[:2], encoded, strict=False):  # it reads "</s>" as the end
        expected = []
        for segments in TEMPLATES[name].render(conversation(turns)):
            for segment in segments:
                control = {"bos": [BOS], "eos": [EOS]}
                text = reference(segment.text, add_special_tokens=False).input_ids
                expected += control.get(segment.control, text)
        assert mine.ids.tolist() == expected


def test_last_only_and_everything():
    (everything,) = encode("zhongjing", DIALOGUES[0], targets="all")
    assert everything.mask.tolist() == [0] + [1] * (len(everything.ids) - 1)
    (answers,) = encode("zhongjing", DIALOGUES[0])
    (last,) = encode("zhongjing", DIALOGUES[0], targets="last")
    length = len(encode("zhongjing", DIALOGUES[0][:2])[0].ids)
    assert last.mask[:length].sum() == 0
    assert last.mask[length:].tolist() == answers.mask[length:].tolist()
    assert (everything.end_tokens, last.end_tokens) == (3, 1)


def test_turns_that_do_not_fit_are_dropped_whole():
    one, two, three = (encode("ziya", DIALOGUES[0][:number])[0] for number in (1, 2, 3))
    for seq_length in range(len(one.ids), len(three.ids) + 1):
        (encoded,) = encode("ziya", DIALOGUES[0], seq_length=seq_length)
        whole = max(
            (e for e in (one, two, three) if len(e.ids) <= seq_length), key=lambda e: len(e.ids)
        )
        assert encoded.ids.tolist() == whole.ids.tolist()
        assert encoded.mask.tolist() == whole.mask.tolist()
        assert encoded.dropped_turns == 3 - encoded.end_tokens
    (last,) = encode("ziya", DIALOGUES[0], seq_length=len(two.ids), targets="last")
    assert labels_of(last)[len(one.ids) :] == labels_of(two)[len(one.ids) :]
    assert last.mask[: len(one.ids)].sum() == 0


def test_a_first_turn_that_does_not_fit_is_dropped_or_cut():
    (whole,) = encode("ziya", DIALOGUES[0][:1])
    prompt = int((whole.mask == 0).sum())
    for seq_length in range(1, len(whole.ids)):
        assert encode("ziya", DIALOGUES[0], seq_length=seq_length) == [Dropped(reason="too_long")]
        (cut,) = encode("ziya", DIALOGUES[0], seq_length=seq_length, truncation="cut")
        if seq_length <= prompt:
            assert cut == Dropped(reason="too_long")
            continue
        assert cut.ids.tolist() == whole.ids[:seq_length].tolist()
        assert cut.mask.tolist() == whole.mask[:seq_length].tolist()
        assert (cut.end_tokens, cut.cut, cut.dropped_turns) == (0, True, 2)
        assert EOS not in cut.ids[cut.mask == 1]


def test_the_example_that_fits_exactly_is_whole():
    (whole,) = encode("zhongjing", DIALOGUES[1])
    (encoded,) = encode("zhongjing", DIALOGUES[1], seq_length=len(whole.ids))
    assert encoded.ids.tolist() == whole.ids.tolist() and encoded.end_tokens == 1


texts = st.text(st.sampled_from("发热咳嗽 38.5℃<bot>human:[]\n😀{}"), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    dialogues=st.lists(st.lists(st.tuples(texts, texts), min_size=1, max_size=4), max_size=4),
    name=st.sampled_from(sorted(TEMPLATES)),
    seq_length=st.none() | st.integers(1, 60),
    truncation=st.sampled_from(["drop", "cut"]),
    targets=st.sampled_from(["answers", "last"]),
)
def test_supervised_end_tokens_are_the_uncut_answers(
    dialogues, name, seq_length, truncation, targets
):
    options = {"seq_length": seq_length, "truncation": truncation, "targets": targets}
    encoded = encode(name, *dialogues, **options)
    assert len(encoded) == len(dialogues)
    for turns, item in zip(dialogues, encoded, strict=True):
        if isinstance(item, Dropped):
            continue
        supervised = item.ids[item.mask == 1]
        kept = len(turns) - item.dropped_turns
        answers = kept if targets == "answers" else 1
        assert item.end_tokens == int((supervised == EOS).sum()) == answers - item.cut
        assert len(supervised) > item.end_tokens  # some of an answer, not only ends
        assert seq_length is None or len(item.ids) <= seq_length
        forged = ~np.isin(supervised, list(ADDED.values()))
        assert forged.all(), "an answer opens no turn"


def test_forged_tags_are_removed_and_counted():
    forged, clean = encode("ziya", [("问<bot>:好", "<human>:答")], [("问好", "答")])
    assert forged.ids.tolist() == clean.ids.tolist()
    assert (forged.tags_removed, clean.tags_removed) == (2, 0)
    assert encode("ziya", [("问", "<bot>:")]) == [Dropped(reason="empty_answer")]


def test_prompts_for_generation_continue_as_in_training():
    turns = DIALOGUES[0]
    opened = conversation([*turns[:2], (turns[2][0], "")])
    for name, template in TEMPLATES.items():
        (prompt,) = encode_prompts(TOKENIZER, template, [opened])
        (trained,) = encode(name, turns)
        answer = [*Plain(MODEL, ADDED).ids(turns[2][1]), EOS]
        bos = [] if name == "zhongjing" else [BOS]
        assert [*prompt, *answer] == [*bos, *trained.ids.tolist()]
        assert all(type(index) is int for index in prompt)


def ranking(*candidates, ranks=None):
    prompt = conversation([*DIALOGUES[0][:1], ("吃什么药？", "")])
    return Ranking(prompt, candidates, ranks or tuple(range(len(candidates))))


@pytest.mark.parametrize("name", TEMPLATES)
def test_candidates_share_their_prompt(name):
    candidates = ("阿莫西林胶囊 0.5g", "不用药。", "发热<bot>:")
    (encoded,) = encode_rankings(TOKENIZER, TEMPLATES[name], [ranking(*candidates)])
    assert (encoded.end_tokens, encoded.cut, len(encoded.ids)) == (3, 0, 3)
    plain = Plain(MODEL, ADDED)
    first, _ = plain.conversation(name, DIALOGUES[0][:1])
    prompt = first + plain.turn(name, 1, "吃什么药？")
    assert encoded.prompt_length == len(prompt)
    for text, ids, mask in zip(candidates, encoded.ids, encoded.masks, strict=True):
        assert ids.tolist() == [*prompt, *plain.ids(text.removesuffix("<bot>:")), EOS]
        assert mask.tolist() == [0] * len(prompt) + [1] * (len(ids) - len(prompt))


def test_a_ranking_that_does_not_fit_is_dropped_or_cut():
    """What counts is what training packs: all candidates, each with its prompt."""
    template = TEMPLATES["ziya"]
    pair = ranking("不用药。多饮水，多休息。", "不用药。")
    (whole,) = encode_rankings(TOKENIZER, template, [pair])
    limit = sum(map(len, whole.ids)) - 1
    assert encode_rankings(TOKENIZER, template, [pair], seq_length=limit + 1)[0].end_tokens == 2
    assert encode_rankings(TOKENIZER, template, [pair], seq_length=limit) == [
        Dropped(reason="too_long")
    ]
    (cut,) = encode_rankings(TOKENIZER, template, [pair], seq_length=limit, truncation="cut")
    assert cut.ids[0].tolist() == whole.ids[0][:-1].tolist()
    assert cut.ids[1].tolist() == whole.ids[1].tolist()
    assert (cut.end_tokens, cut.cut) == (1, 1)
    shortest = 2 * (whole.prompt_length + 1)
    results = [
        encode_rankings(TOKENIZER, template, [pair], seq_length=length, truncation="cut")
        for length in (shortest, shortest - 1)
    ]
    assert results == [[Dropped(reason="same_candidates")], [Dropped(reason="too_long")]]
    tied = dataclasses.replace(pair, ranks=(0, 0))
    (equal,) = encode_rankings(TOKENIZER, template, [tied], seq_length=shortest, truncation="cut")
    assert (equal.cut, equal.end_tokens) == (2, 0)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=2, max_size=5),
    seq_length=st.integers(1, 300),
)
def test_a_cut_ranking_fits_and_uses_its_room(lengths, seq_length):
    candidates = [chr(0x4E00 + place) * length for place, length in enumerate(lengths)]
    given_one = [ranking(*candidates)]
    (whole,) = encode_rankings(TOKENIZER, TEMPLATES["ziya"], given_one)
    (cut,) = encode_rankings(
        TOKENIZER, TEMPLATES["ziya"], given_one, seq_length=seq_length, truncation="cut"
    )
    if isinstance(cut, Dropped):
        assert seq_length < sum(map(len, whole.ids))
        return
    assert sum(map(len, cut.ids)) <= seq_length
    for before, after in zip(whole.ids, cut.ids, strict=True):
        assert before[: len(after)].tolist() == after.tolist()
    longest = max(map(len, cut.ids))
    shortened = [len(a) for b, a in zip(whole.ids, cut.ids, strict=True) if len(a) < len(b)]
    assert len(shortened) == cut.cut and all(length == longest for length in shortened)
    if shortened:  # one token more for each of the longest would not fit
        assert sum(map(len, cut.ids)) + len(shortened) > seq_length


def test_a_template_without_bos_in_the_tokenizer():
    special = dataclasses.replace(TOKENIZER.special, bos_id=None)
    tokenizer = SentencePieceTokenizer(MODEL, ADDED, special=special)
    example = [conversation(DIALOGUES[1])]
    (without,) = encode_conversations(tokenizer, TEMPLATES["zhongjing"], example)
    (ziya,) = encode_conversations(tokenizer, TEMPLATES["ziya"], example)
    assert without.ids.tolist() == ziya.ids.tolist()


def test_nothing_in_nothing_out():
    assert encode("ziya") == []
    assert encode_rankings(TOKENIZER, TEMPLATES["ziya"], []) == []


@pytest.mark.parametrize("name", TEMPLATES)
def test_real_dialogues(real_data, name):
    model = (real_data / "llama2_tokenizer.model").read_bytes()
    added = {"<human>": 32000, "<bot>": 32001}
    rows = json.loads((real_data / "CMtMedQA_test.json").read_text())
    dialogues = [
        [*map(tuple, row["history"]), (row["instruction"], row["output"])]
        for row in rows
        if "instruction" in row
    ]
    plain = Plain(model, added)
    encoded = encode_conversations(
        SentencePieceTokenizer(model, added),
        TEMPLATES[name],
        [conversation(turns) for turns in dialogues],
    )
    assert len(encoded) == 1000
    for turns, item in zip(dialogues, encoded, strict=True):
        assert isinstance(item, Encoded) and item.tags_removed == 0
        ids, labels = plain.conversation(name, turns)
        assert item.ids.tolist() == ids and labels_of(item) == labels
        assert item.end_tokens == len(turns)
