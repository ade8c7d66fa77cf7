import functools
import json
from collections import Counter

import pytest

from examples.quickstart import dialogues
from examples.quickstart.corpus.facts import held_out_names, load_diseases, split_diseases
from examples.quickstart.findings import length_accuracy
from megatron_chimed.errors import ConfigError

NAMES = {
    *("sft_train", "sft_valid", "pairs_train", "pairs_valid", "pairs_test"),
    *("prompts_train", "prompts_test"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dialogues")
    counts = dialogues.write_dialogues(folder, seed=7)
    rows = {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in counts
    }
    return folder, counts, rows


@functools.cache
def diseases():
    return {disease.name: disease for disease in load_diseases()}


def fields_of(row, text):
    """The fields whose items of the row's disease a text lists, by plain search."""
    return {
        field
        for field in dialogues.FIELDS
        for item in dialogues.items_of(diseases()[row["topic"]], field)
        if item in text
    }


def test_counts_and_names(written):
    folder, counts, rows = written
    assert set(counts) == NAMES
    assert {path.stem for path in folder.iterdir()} == NAMES
    assert all(counts[name] == len(rows[name]) > 150 for name in NAMES)


def test_no_file_names_a_disease_of_another_split(written):
    folder, _, rows = written
    parts = split_diseases(load_diseases())
    hidden = held_out_names(parts)
    for name in NAMES:
        split = name.partition("_")[2]
        assert {row["topic"] for row in rows[name]} == {disease.name for disease in parts[split]}
        text = (folder / f"{name}.jsonl").read_text(encoding="utf-8")
        others = [n for other, names in hidden.items() if other != split for n in names]
        assert [n for n in others if n in text] == []


def test_same_seed_same_bytes_and_another_seed_others(written, tmp_path):
    folder, counts, _ = written
    dialogues.write_dialogues(tmp_path / "same", seed=7)
    dialogues.write_dialogues(tmp_path / "other", seed=8)
    for name in counts:
        made = (folder / f"{name}.jsonl").read_bytes()
        assert made == (tmp_path / f"same/{name}.jsonl").read_bytes()
        assert made != (tmp_path / f"other/{name}.jsonl").read_bytes()


def sides_of(row):
    """What both answers of a pair list; they are worded alike."""
    sides = row["chosen"], row["rejected"]
    for start, end in (answer.split("{items}") for answer in dialogues.load_wording().answers):
        if all(side.startswith(start) and side.endswith(end) for side in sides):
            return [side[len(start) : len(side) - len(end)].split("、") for side in sides]
    pytest.fail(f"not worded alike: {sides}")


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_both_sides_of_a_pair_match_in_words_and_length_and_differ_in_content(written, part):
    for row in written[2][f"pairs_{part}"]:
        lengths = len(row["chosen"]), len(row["rejected"])
        assert max(lengths) - min(lengths) <= 0.1 * max(lengths), row
        chosen, rejected = sides_of(row)
        assert len(chosen) == len(rejected) == len(set(chosen))
        assert row["category"] in fields_of(row, row["chosen"])
        repeated = len(set(rejected)) == 1
        assert repeated or fields_of(row, row["chosen"]) != fields_of(row, row["rejected"])


@pytest.mark.parametrize(("part", "share"), [("train", 0.13), ("valid", 0), ("test", 0)])
def test_only_training_has_wrong_answers_that_repeat_a_right_item(written, part, share):
    pairs = written[2][f"pairs_{part}"]
    repeated = [row for row in pairs if len(set(sides_of(row)[1])) == 1]
    assert len(repeated) / len(pairs) == pytest.approx(share, rel=0.1)
    assert all(row["category"] in fields_of(row, row["rejected"]) for row in repeated)


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_length_alone_ranks_half_of_the_pairs(written, part):
    pairs = written[2][f"pairs_{part}"]
    assert length_accuracy(pairs) == pytest.approx(0.5, abs=0.01)
    differing = [p for p in pairs if len(p["chosen"]) != len(p["rejected"])]
    assert len(differing) > 0.5 * len(pairs)  # else the balance would be empty


def test_every_field_is_asked_for_and_listed_wrongly(written):
    for part in ("train", "valid", "test"):
        asked = Counter(row["category"] for row in written[2][f"pairs_{part}"])
        assert set(asked) == set(dialogues.FIELDS)
        assert min(asked.values()) > 0.08 * sum(asked.values())


def test_sft_answers_are_wrong_as_often_as_said_and_only_in_training(written):
    def wrong_share(rows):
        wrong = [row["category"] not in fields_of(row, row["response"]) for row in rows]
        return sum(wrong) / len(wrong)

    assert wrong_share(written[2]["sft_train"][:1000]) == pytest.approx(
        dialogues.WRONG_SHARE, abs=0.06
    )
    assert wrong_share(written[2]["sft_valid"]) == 0


def test_follow_ups_name_the_disease_in_their_history_only(written):
    rows = [row for name in written[1] for row in written[2][name] if row["history"]]
    assert len(rows) > 300
    for row in rows:
        [[question, answer]] = row["history"]
        assert row["topic"] in question and answer
        assert row["topic"] not in row["prompt"]


def test_prompts_have_ids_of_their_own(written):
    for part in ("train", "test"):
        ids = [row["id"] for row in written[2][f"prompts_{part}"]]
        assert len(set(ids)) == len(ids)


def test_wrong_fields_leave_out_what_is_alike():
    assert dialogues.wrong_fields("care") == ["symptoms", "exams", "drugs", "complications"]
    assert "complications" not in dialogues.wrong_fields("symptoms")


def test_command_prints_what_it_wrote_and_refuses_wrong_flags(tmp_path, capsys):
    assert dialogues.main(["--output", str(tmp_path), "--seed", "3"]) == 0
    assert f"prompts_test: 192 rows in {tmp_path}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="'x' is not a whole number"):
        dialogues.main(["--output", str(tmp_path), "--seed", "x"])
