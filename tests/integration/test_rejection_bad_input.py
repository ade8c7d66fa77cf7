"""What rejection sampling refuses, and what it skips and says so."""

import dataclasses
import json
import shutil

import pytest
import yaml

from megatron_chimed import files
from megatron_chimed.rejection import drawing
from megatron_chimed.rejection.candidate import read_candidates
from tests.integration.commands import call
from tests.integration.preferences import configure, preprocess, train, write_jsonl
from tests.integration.rejection import configure_rounds, read_jsonl, sample
from tests.unit.tokenizer.samples import train_model

CONFIG, DATA, OUTPUT, CHECKPOINT = 78, 65, 73, 74
NUL = 3  # the token of that byte


@pytest.fixture
def project(rejection_project):
    return rejection_project


def refuse(path, *words):
    """The message with which the rounds of a configuration are refused, and the exit code."""
    done = call("rejection_sample", "--config", path, *words)
    assert done.code, done.out
    assert "Traceback" not in done.err
    return done.err, done.code


def test_a_judge_with_another_tokenizer(project, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train_model(380))
    preprocess(tmp_path, project / "pairs.jsonl", "pairs")
    train(configure(tmp_path, "other", data={"train": f"{tmp_path}/pairs"}))
    path = configure_rounds(project, "no", reward_model=str(tmp_path / "other"))
    said, code = refuse(path)
    assert code == CONFIG
    assert "other/checkpoints/iter_0000006 has another tokenizer (identity" in said
    assert "380 ids) than the policy" in said and "400 ids)" in said
    assert not (project / "no").exists()


def test_models_in_each_others_place(project):
    said, code = refuse(configure_rounds(project, "no", policy=str(project / "judge")))
    assert code == CHECKPOINT and "holds a reward model, which writes no text" in said
    said, code = refuse(configure_rounds(project, "no", reward_model=str(project / "sft")))
    assert code == CHECKPOINT and "has no reward head, so it scores nothing" in said
    said, code = refuse(configure_rounds(project, "no", policy=str(project / "nowhere")))
    assert code == CHECKPOINT and "nowhere" in said


def test_settings_are_named_as_they_are_called_here(project):
    """Code that training shares names them as flags of tools/train.py, which this tool lacks."""
    wrong = {"settings": {"optim": {"lr": -1}}}
    said, code = refuse(configure_rounds(project, "no", training=wrong))
    assert code == CONFIG and "--training.settings.optim.lr is -1" in said
    assert " --optim.lr" not in said
    wrong = {"settings": {"training": {"micro_batch_size": 3, "global_batch_size": 4}}}
    said, code = refuse(configure_rounds(project, "no", training=wrong))
    assert code == CONFIG and "Set --training.settings.training.global_batch_size 3" in said
    said, code = refuse(configure_rounds(project, "no", inference={"tensor_parallel_size": 3}))
    assert code == CONFIG and "--inference.tensor_parallel_size" in said
    assert "--parallel." not in said
    assert not (project / "no").exists()


def test_answers_by_others_to_unknown_prompts(project, tmp_path):
    rows = [{"id": f"q{n}", "completion": "口服"} for n in (0, 77, 1, 78)]
    external = write_jsonl(tmp_path / "gpt4.jsonl", rows)
    said, code = refuse(configure_rounds(project, "no", candidates={"external": [str(external)]}))
    assert code == DATA
    assert "2 of 4 answers by others are to prompts that are not there: 'q77' (" in said
    assert f"{external}:2), 'q78' ({external}:4). The prompts' ids are 'q0', 'q1'" in said


def test_held_out_prompts_that_are_trained_on(project, tmp_path):
    rows = [*read_jsonl(project / "held.jsonl"), *read_jsonl(project / "train.jsonl")[:2]]
    held_out = write_jsonl(tmp_path / "held.jsonl", rows)
    said, code = refuse(configure_rounds(project, "no", prompts={"held_out": [str(held_out)]}))
    assert code == CONFIG
    assert "2 prompts of prompts.held_out are in prompts.train too: q0, q1. Take them out" in said


def test_prompts_longer_than_the_context_are_counted_named_and_left_out(project, tmp_path):
    rows = read_jsonl(project / "train.jsonl")
    rows[1]["prompt"] = rows[4]["prompt"] = "患者发热咳嗽" * 40
    asked = write_jsonl(tmp_path / "train.jsonl", rows)
    answers = [{"id": name, "completion": "口服"} for name in ("q1", "q2")]
    external = write_jsonl(tmp_path / "others.jsonl", answers)
    path = configure_rounds(
        project,
        "skips",
        prompts={"train": [str(asked)]},
        candidates={"per_prompt": 1, "references": True, "external": [str(external)]},
    )
    said = sample(path)
    told = "skipped: 2 of prompts.train leave no room for an answer of 12 tokens, first q1, q4"
    assert told in said
    found = read_candidates(project / "skips/round_01/candidates.parquet")
    assert {c.prompt_id for c in found} == {"q0", "q2", "q3", "q5"}
    assert {c.prompt_id for c in found if c.source == "others"} == {"q2"}
    report = json.loads((project / "skips/round_01/report.json").read_text())
    assert report["skipped"] == {
        "prompt_too_long (prompts.train)": ["q1", "q4"],
        "answer by others to a skipped prompt": ["q1"],
    }
    assert "q1" in (project / "skips/round_01/report.md").read_text()

    for row in rows:
        row["prompt"] = "患者发热咳嗽" * 40
    said, code = refuse(
        configure_rounds(
            project, "no", prompts={"train": [str(write_jsonl(tmp_path / "long.jsonl", rows))]}
        )
    )
    assert code == DATA
    assert "none of 6 prompts of prompts.train leaves room for an answer: the shortest has" in said
    assert "with candidates.max_new_tokens at most 116 fit the policy's positions" in said


def test_answers_that_training_cannot_take_whole_are_not_learned(project, tmp_path):
    """Of a conversation that is cut, an earlier answer would be learned in their place."""
    rows = read_jsonl(project / "train.jsonl")[:2]
    rows[0]["history"] = [["发热？", "口服"], ["咳嗽？", "血压"]]
    asked = write_jsonl(tmp_path / "train.jsonl", rows)
    answers = [{"id": "q0", "completion": "口服胶囊" * 12}, {"id": "q0", "completion": "每日"}]
    path = configure_rounds(
        project,
        "long",
        prompts={"train": [str(asked)]},
        candidates={"per_prompt": 0, "external": [str(write_jsonl(tmp_path / "o.jsonl", answers))]},
        selection={"per_prompt": 0},
        training={"settings": {"data": {"seq_length": 80}}},
    )
    said = sample(path)
    assert "round 1: 2 candidates: 1 too_long_to_train, 1 selected" in said
    (row,) = read_jsonl(project / "long/round_01/selected.jsonl")
    assert row["conversations"][-1]["value"] == "每日"


def test_a_text_that_no_file_can_hold_is_mended(project, monkeypatch):
    """A byte-level vocabulary can spell NUL."""

    def spoiled(*arguments, **options):
        found = complete(*arguments, **options)
        return [dataclasses.replace(c, token_ids=(*c.token_ids, NUL)) for c in found]

    complete = drawing.complete_resumably
    monkeypatch.setattr(drawing, "complete_resumably", spoiled)
    sample(configure_rounds(project, "nul"))
    found = read_candidates(project / "nul/round_01/candidates.parquet")
    assert all(c.token_ids[-1] == NUL and "\0" not in c.text for c in found)


@pytest.fixture(scope="module")
def stopped(rejection_project):
    """A job that found nothing to learn, and how it said so."""
    path = configure_rounds(rejection_project, "stopped", selection={"min_score": 1e6})
    said, code = refuse(path)
    assert code == DATA
    return rejection_project / "stopped", said


def test_nothing_is_selected(stopped):
    folder, said = stopped
    assert "round 1 selected none of 24 candidates, so there is nothing to learn: " in said
    assert "low_score" in said and f"{folder}/round_01/candidates.parquet" in said
    found = read_candidates(folder / "round_01/candidates.parquet")
    assert len(found) == 24 and not any(c.decision == "selected" for c in found)


def test_a_selection_is_changed_until_it_is_learned(stopped):
    """What was drawn for one that kept nothing serves the next."""
    folder = stopped[0].parent / "loosened"
    shutil.copytree(stopped[0], folder)
    path = configure_rounds(folder.parent, "loosened")
    said = sample(path)
    assert "round 1: `selection` has changed, so it decides anew" in said
    assert "6 selected" in said
    assert "scoring 24 answers" not in said, "nothing was drawn or scored again"
    before, after = (
        read_candidates(place / "round_01/candidates.parquet") for place in (stopped[0], folder)
    )
    undecided = [[dataclasses.replace(c, decision="") for c in found] for found in (before, after)]
    assert undecided[0] == undecided[1]
    for name in ("report.json", "samples.parquet"):
        (folder / "round_01" / name).unlink()
    said, code = refuse(path, "--selection.min_score", 0.5)
    assert code == CONFIG
    assert "candidates.parquet was decided on with another `selection`, and " in said
    assert "round_01/train has been trained on what that selected. Set it back" in said


def test_a_job_goes_on_only_as_what_it_was(stopped, tmp_path):
    folder, _ = stopped
    project = folder.parent
    rows = read_jsonl(project / "train.jsonl")
    rows[3]["prompt"] += "？"
    asked = write_jsonl(tmp_path / "train.jsonl", rows)
    train(project / "sft.yaml", "--output-dir", tmp_path / "sft", "--training.train_steps", 2)
    own = {"selection": {"min_score": 1e6}}
    for sections, message in (
        ({**own, "prompts": {"train": [str(asked)]}}, 'prompts.train was "'),
        ({**own, "policy": str(tmp_path / "sft")}, 'policy was "'),
        ({**own, "candidates": {"temperature": 0.5}}, "candidates.temperature was 1.0 and is 0.5"),
        ({**own, "seed": 1}, "seed was 1234 and is 1"),
    ):
        path = configure_rounds(project, "changed", **sections)
        before = (folder / "config.yaml").read_bytes()
        said, code = refuse(path, "--output-dir", folder)
        assert code == CONFIG
        assert f"{folder} holds rounds of another job: {message}" in said
        assert (folder / "config.yaml").read_bytes() == before
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes((project / "train.jsonl").read_bytes())
    path = configure_rounds(project, "moved", prompts={"train": [str(moved)]}, **own)
    said, _ = refuse(path, "--output-dir", folder, "--inference.max_batch", 3)
    assert "selected none of 24 candidates" in said, "the same prompts, elsewhere"


def test_two_jobs_in_one_folder(project):
    path = configure_rounds(project, "busy")
    (project / "busy").mkdir()
    with files.locked(project / "busy/.lock", "rejection sampling on node7, process 12"):
        said, code = refuse(path)
    assert code == OUTPUT
    assert "node7, process 12" in said and "two jobs would overwrite each other" in said
    (project / "file").write_text("")
    said, code = refuse(path, "--output-dir", project / "file")
    assert code == OUTPUT and f"{project}/file" in said


def test_a_policy_without_a_template_has_to_be_given_one(project, tmp_path):
    words = ("convert_checkpoint", "export-hf", "--checkpoint", project / "sft")
    assert call(*words, "--output", tmp_path / "hf").code == 0
    config = json.loads((tmp_path / "hf/config.json").read_text())
    del config["megatron_chimed"]
    (tmp_path / "hf/config.json").write_text(json.dumps(config))
    words = ("convert_checkpoint", "import-hf", "--input", tmp_path / "hf")
    assert call(*words, "--output", tmp_path / "policy").code == 0
    path = configure_rounds(project, "bare", policy=str(tmp_path / "policy"))
    said, code = refuse(path)
    assert code == CONFIG
    assert f"{tmp_path}/policy/iter_0000000 does not name its chat template" in said
    assert "Name it: --template." in said
    assert "nothing was drawn" in sample(path, "--dry-run", "--template", "ziya")
    said, code = refuse(configure_rounds(project, "no"), "--template", "chimed")
    assert code == CONFIG and "was trained with template 'ziya'" in said


def test_data_to_mix_in_have_the_template_of_the_policy(project):
    preprocess(project, project / "chat.jsonl", "other", stage="sft", template="chimed")
    mix = {"mix": [{"prefix": str(project / "other")}]}
    path = configure_rounds(project, "no", training=mix)
    said, code = refuse(path)
    assert code == CONFIG and not (project / "no").exists()
    assert f"the policy {project}/sft" in said and "has template 'ziya' (identity" in said
    assert f"training.mix {project}/other has 'chimed' (identity" in said
    assert "--training.settings.data.allow_other_template true" in said
    settings = yaml.safe_load(path.read_text())["training"]["settings"]
    settings["data"]["allow_other_template"] = True
    allowed = ("--training.settings", json.dumps(settings))
    assert "nothing was drawn" in sample(path, "--dry-run", *allowed)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"selection": {"quotas": {"c": 1}}}, "selection.quotas names 'c', but the prompts' "),
        ({"candidates": {"temperature": 0}}, "so all 4 answers to a prompt would be the same"),
        ({"candidates": {"per_prompt": 0}}, "candidates.per_prompt is 0, and neither"),
        ({"candidates": {"top_p": 0}}, "top_p is 0"),
        ({"inference": {"batch_tokens": 0}}, "inference.batch_tokens is 0: set 1 or more"),
        ({"rounds": 0}, "rounds is 0: set 1 or more"),
        ({"evaluation": {"per_prompt": 0}}, "evaluation.per_prompt is 0: set 1 or more"),
        ({"training": {"epochs": 0}}, "training.epochs is 0.0: set it above 0"),
        ({"training": {"config": ["/no/such.yaml"]}}, "/no/such.yaml cannot be read"),
        ({"training": {"settings": {"optim": {"lrr": 1}}}}, "lrr"),
        ({"inference": {"tensor_parallel_size": 2}}, "1 ranks cannot be split into groups"),
        ({"rewardmodel": "x"}, "rewardmodel"),
    ],
)
def test_settings_that_cannot_be(project, sections, message):
    said, code = refuse(configure_rounds(project, "no", **sections))
    assert code == CONFIG and message in said
    assert not (project / "no").exists()


def test_prompts_without_answers_cannot_be_references(project):
    path = configure_rounds(
        project,
        "no",
        prompts={"train": [str(project / "held.jsonl")], "held_out": []},
        candidates={"references": True},
    )
    said, code = refuse(path)
    assert code == CONFIG
    assert "none of the 4 prompts comes with an answer" in said


def test_malformed_prompts_are_told_with_their_line(project, tmp_path):
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"id": "a", "prompt": "发热？"}\n{"id": "b"}\n')
    said, code = refuse(configure_rounds(project, "no", prompts={"train": [str(asked)]}))
    assert code == DATA and f"{asked}:2" in said
    asked.write_text('{"id": "a", "prompt": "发热？"}\n{"id": "a", "prompt": "咳嗽？"}\n')
    said, code = refuse(configure_rounds(project, "no", prompts={"train": [str(asked)]}))
    assert code == DATA and f"two prompts have the id 'a': {asked}:1 and {asked}:2" in said
