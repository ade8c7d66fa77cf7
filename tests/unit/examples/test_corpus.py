import json
import random

import pytest

from examples.quickstart.baselines import longest_shared_ngram
from examples.quickstart.corpus import facts, generator
from examples.quickstart.corpus.grammar import expand, sample_numbers
from examples.quickstart.corpus.slots import Slots, join
from megatron_chimed.errors import DataError


@pytest.fixture(scope="module")
def parts():
    return facts.split_diseases(facts.load_diseases())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    summaries = generator.generate(folder, seed=7)
    documents = {
        split: [json.loads(line) for line in made.path.read_text(encoding="utf-8").splitlines()]
        for split, made in summaries.items()
    }
    return folder, summaries, documents


def text_of(documents):
    return "\n\n".join(document["text"] for document in documents)


def test_sizes_and_summary(corpus):
    _, summaries, documents = corpus
    assert summaries["train"].text_bytes > 900_000
    for split, made in summaries.items():
        assert made.documents == len(documents[split])
        assert made.text_bytes == sum(len(d["text"].encode()) for d in documents[split])
        assert made.characters == sum(len(d["text"]) for d in documents[split])
        assert made.diseases == len({d["topic"] for d in documents[split]})
    for split in ("valid", "test"):
        assert summaries[split].diseases == 16
        assert summaries[split].text_bytes > 15_000


def test_same_seed_same_bytes_and_another_seed_another_text(corpus, tmp_path):
    folder, _, _ = corpus
    generator.generate(tmp_path / "same", seed=7)
    generator.generate(tmp_path / "other", seed=8)
    for split in facts.SPLITS:
        made = (folder / f"{split}.jsonl").read_bytes()
        assert made == (tmp_path / "same" / f"{split}.jsonl").read_bytes()
        assert made != (tmp_path / "other" / f"{split}.jsonl").read_bytes()
    assert sorted(p.name for p in folder.iterdir()) == ["test.jsonl", "train.jsonl", "valid.jsonl"]


def test_no_document_names_a_disease_held_out_in_another_split(corpus, parts):
    _, _, documents = corpus
    hidden = facts.held_out_names(parts)
    for split, made in documents.items():
        text = text_of(made)
        for other, names in hidden.items():
            found = [name for name in names if name in text]
            assert (other == split) == bool(found), (split, other, found)


def test_no_template_is_shared_and_none_is_nearly_shared():
    for genre, by_split in generator.load_templates().items():
        assert set(by_split) == set(facts.SPLITS), genre
        assert len(by_split["train"]) >= 3, genre
        for split in ("valid", "test"):
            for template in by_split[split]:
                length, shared = longest_shared_ngram("\n".join(by_split["train"]), template)
                assert length < 30, (genre, split, shared)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_held_out_text_shares_only_short_passages_with_training(corpus, split):
    _, _, documents = corpus
    length, shared = longest_shared_ngram(text_of(documents["train"]), text_of(documents[split]))
    assert 5 < length < 30, shared


def test_no_document_repeats_another_and_none_has_template_marks_left(corpus):
    _, _, documents = corpus
    texts = [d["text"] for made in documents.values() for d in made]
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert not set("[]{}|=~") & set(text), text
        assert "。。" not in text and "，，" not in text and "、、" not in text, text


def test_every_template_expands_for_every_disease_of_its_split(parts):
    templates = generator.load_templates()
    for split, members in parts.items():
        rng = random.Random(0)
        for disease in members[:: 1 if split != "train" else 8]:
            peers = [peer for peer in members if peer is not disease]
            for by_split in templates.values():
                for template in by_split[split]:
                    assert len(expand(template, Slots(disease, peers, rng), rng)) > 40


def test_expand_picks_among_nested_choices_and_fills_slots():
    rng = random.Random(1)
    seen = {expand("[a|b[c|d]]{x}", lambda call: f"<{call}>", rng) for _ in range(99)}
    assert seen == {"a<x>", "bc<x>", "bd<x>"}


def test_sampled_numbers_lie_in_their_range_with_its_decimals():
    rng = random.Random(2)
    values = {sample_numbers("{1.5~2.0}", rng) for _ in range(300)}
    assert values <= {"1.5", "1.6", "1.7", "1.8", "1.9", "2.0"} and len(values) > 3
    assert sample_numbers("a{7~7}/{8~8}b", rng) == "a7/8b"


def test_join_drops_or_changes_the_verb_for_findings_that_need_another():
    assert join("胸片", "提示", "肺内有影") == "胸片提示肺内有影"
    assert join("血钾", "提示", "降至3.1mmol/L") == "血钾降至3.1mmol/L"
    assert join("量表", "显示", "18分") == "量表为18分"
    assert join("药", "，", "每日1次") == "药，每日1次"


def test_slots_give_every_item_before_any_item_again(parts):
    disease, *peers = parts["train"]
    slots = Slots(disease, peers, random.Random(3))
    known = [item for item, _ in disease.items["symptoms"]]
    given = [slots("symptoms:1") for _ in known]
    assert sorted(given) == sorted(known)
    assert slots("chief") == given[-1] and slots("chief") in known[:2]
    with pytest.raises(KeyError, match="no_such"):
        slots("no_such")


def test_quiz_answer_is_the_letter_of_the_disease(parts):
    disease, *peers = parts["valid"]
    for seed in range(8):
        slots = Slots(disease, peers, random.Random(seed))
        assert f"{slots('answer')}．{disease.name}" in slots("options")


def entry(**changes):
    lists = {field: "甲；乙" for field in facts.LIST_FIELDS}
    pairs = {field: "丙=丁" for field in facts.PAIR_FIELDS}
    texts = {field: "戊" for field in facts.TEXT_FIELDS}
    return {"name": "某病", "patient": "1-2", **lists, **pairs, **texts, **changes}


def test_a_fact_with_an_unknown_field_is_refused():
    with pytest.raises(DataError, match=r"某病: fields \['symptom'\] are missing or unknown"):
        facts._disease(entry(symptom="x"), "科")


def test_a_pair_without_detail_is_refused():
    with pytest.raises(DataError, match=r"某病: drugs \['己'\] need `=` and a detail"):
        facts._disease(entry(drugs="丙=丁；己"), "科")


def test_hidden_names_are_dropped_from_lists_and_refused_in_text():
    disease = facts._disease(entry(complications="甲病；乙"), "科")
    assert facts._without(disease, ["甲病"]).items["complications"] == (("乙", ""),)
    with pytest.raises(DataError, match="某病: cause '由甲病引起' is empty or names a held-out"):
        facts._without(facts._disease(entry(cause="由甲病引起"), "科"), ["甲病"])


def test_command_prints_sizes_and_refuses_wrong_flags(tmp_path, capsys):
    assert generator.main(["--output", str(tmp_path), "--seed", "3"]) == 0
    assert "train: 123 diseases" in capsys.readouterr().out
    with pytest.raises(generator.ConfigError, match="'x' is not a whole number"):
        generator.main(["--output", str(tmp_path), "--seed", "x"])
