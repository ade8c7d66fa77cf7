"""A reward model from its data to its scores, through the commands, and what they refuse."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForSequenceClassification

from megatron_chimed.checkpoint.reader import CheckpointReader
from megatron_chimed.data.templates import load_template
from megatron_chimed.observe.metrics import read_metrics
from megatron_chimed.tokenizer import load_tokenizer
from tests.integration import commands
from tests.integration.commands import call
from tests.integration.hf_folders import edit_json
from tests.integration.preferences import (
    configure,
    make_project,
    pairs,
    preprocess,
    train,
    write_jsonl,
)
from tests.unit.tokenizer.samples import LINES, train_model


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A language model of a few steps, and a reward model made of it that ranks by content."""
    folder = make_project(tmp_path_factory.mktemp("reward"))
    path = configure(
        folder,
        "run",
        data={"train": f"{folder}/train", "valid": f"{folder}/held"},
        optim={"lr": 3e-3},
        training={"train_steps": 24},
        checkpoint={"load": str(folder / "sft")},
    )
    said = train(path)
    return folder, said


def test_a_reward_model_learns_to_rank_what_it_has_not_seen(project):
    folder, said = project
    assert "fresh score.weight, optimizer and data from the start" in said
    assert "groups of answers keep their loss" in said
    events = [event for event in read_metrics(folder / "run/metrics.jsonl")]
    (valid,) = (event for event in events if event["kind"] == "valid")
    assert valid["accuracy"] > 0.9
    assert valid["margin"] == pytest.approx(valid["score_better"] - valid["score_worse"])
    assert sum(count for count, *_ in valid["calibration"]) == 16, "each held-out pair once"
    assert sum(right for *_, right in valid["calibration"]) == valid["accuracy"] * 16
    assert f"accuracy {valid['accuracy']:.4f}" in said
    assert "calibration" not in said.split("validation at")[1].split("\n")[0]
    assert (folder / "run/calibration.png").read_bytes().startswith(b"\x89PNG")
    first = next(event for event in events if event["kind"] == "train")
    assert first["loss"] == pytest.approx(math.log(2), abs=0.1)


def test_the_checkpoint_holds_all_that_scoring_needs(project):
    folder, _ = project
    reader = CheckpointReader(folder / "run/checkpoints/iter_0000024")
    assert "lm_head.weight" not in reader.tensors
    assert reader.tensors["score.weight"].shape == (1, 32)
    assert reader.config["template"]["identity"] == load_template("ziya").identity
    tokenizer = load_tokenizer(reader.tokenizer_folder)
    assert tokenizer.pad_id == tokenizer.unk_id != tokenizer.eos_id
    assert tokenizer.identity == reader.state["tokenizer_identity"]


def rows_to_score(folder):
    """Pairs that were held out, of any length and form."""
    rows = []
    for row in map(json.loads, (folder / "held.jsonl").read_text(encoding="utf-8").splitlines()):
        for key in ("response_chosen", "response_rejected"):
            rows.append({"prompt": row["question"], "completion": row[key], "side": key})
    rows[0] |= {"history": [["头痛？", "多喝水"]], "system": "你是医生。"}
    rows[3] = {
        "conversations": [{"from": "human", "value": rows[3]["prompt"]}],
        "completion": rows[3]["completion"],
    }
    return rows


def score(folder, checkpoint, *words, rows=None):
    """Runs the command on rows; what it wrote, or how it failed."""
    source = write_jsonl(folder / "in.jsonl", rows_to_score(folder) if rows is None else rows)
    words = ["--input", source, "--output", folder / "out.jsonl", "--overwrite", *words]
    done = call("score", "--checkpoint", checkpoint, *words)
    if done.code:
        return done
    found = (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in found]


def test_rows_are_scored_in_their_order(project):
    folder, _ = project
    rows = rows_to_score(folder)
    scored = score(folder, folder / "run")
    assert [{k: v for k, v in row.items() if k != "score"} for row in scored] == rows
    scores = [row["score"] for row in scored]
    assert sum(a > b for a, b in zip(scores[::2], scores[1::2], strict=True)) >= 15
    small = score(folder, folder / "run", "--batch-tokens", 1)
    assert [row["score"] for row in small] == pytest.approx(scores, abs=1e-6)


def score_in_pool(rank, world_size, store_path, checkpoint, rows, parallel):
    """What `tools/score.py` does as one rank, with a file for rendezvous."""
    import torch.distributed as dist

    from megatron_chimed.engine import ParallelConfig
    from megatron_chimed.generation import open_session, require_template, score_conversations
    from megatron_chimed.generation.scoring import _conversation_of

    with open_session(
        checkpoint,
        ParallelConfig(**parallel),
        head="score",
        world=(rank, world_size, rank),
        store=dist.FileStore(store_path, world_size),
    ) as session:
        conversations = [_conversation_of(row) for row in rows]
        template = require_template(session)
        return score_conversations(session, conversations, template, batch_tokens=50)


@pytest.mark.parametrize(
    ("parallel", "world_size"),
    [
        pytest.param({"tensor_parallel_size": 2}, 2, marks=pytest.mark.full),
        pytest.param({"pipeline_parallel_size": 2}, 2, marks=pytest.mark.full),
        ({}, 2),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, 4),
    ],
)
def test_every_layout_gives_the_same_scores_on_every_rank(project, gloo_pool, parallel, world_size):
    folder, _ = project
    expected = [row["score"] for row in score(folder, folder / "run")]
    rows = rows_to_score(folder)
    found = gloo_pool.run(
        score_in_pool, world_size, str(folder / "run"), rows, parallel, init=False
    )
    for scores in found:
        assert scores == pytest.approx(expected, abs=1e-5)


def test_transformers_scores_the_export_alike_and_it_comes_back(project, tmp_path):
    folder, _ = project
    words = ["--verify-logits"]
    done = call(
        "convert_checkpoint", "export-hf", "--checkpoint", folder / "run", "--output",
        tmp_path / "hf", *words,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "scores agree with transformers" in done.out
    expected = score(folder, folder / "run")
    rows = rows_to_score(folder)[4:]  # plain prompts
    model, loading = LlamaForSequenceClassification.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not any(loading.values())
    assert model.config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    segments = [(f"<human>:{row['prompt']}\n<bot>:", row["completion"]) for row in rows]
    ids = [
        [i for text in pair for i in tokenizer(text, add_special_tokens=False)["input_ids"]] + [2]
        for pair in segments
    ]
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt", padding_side="right")
    with torch.no_grad():
        theirs = model(**batch).logits[:, 0].tolist()
    assert theirs == pytest.approx([row["score"] for row in expected[4:]], abs=1e-5)

    done = call(
        "convert_checkpoint", "import-hf", "--input", tmp_path / "hf", "--output",
        tmp_path / "back", *words,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert score(folder, tmp_path / "back") == expected


def test_a_reward_model_from_elsewhere_has_to_be_given_its_template(project, tmp_path):
    folder, _ = project
    call("convert_checkpoint", "export-hf", "--checkpoint", folder / "run", "--output",
         tmp_path / "hf")  # fmt: skip
    config = json.loads((tmp_path / "hf/config.json").read_text())
    del config["megatron_chimed"]
    (tmp_path / "hf/config.json").write_text(json.dumps(config))
    done = call("convert_checkpoint", "import-hf", "--input", tmp_path / "hf", "--output",
                tmp_path / "back")  # fmt: skip
    assert "its training template is unknown" in done.out
    refused = score(folder, tmp_path / "back")
    assert refused.code == 78
    assert "does not name its chat template" in refused.err
    expected = score(folder, folder / "run")
    assert score(folder, tmp_path / "back", "--template", "ziya") == expected

    edit_json(tmp_path / "hf/config.json", id2label={"0": "a", "1": "b"})
    done = call("convert_checkpoint", "import-hf", "--input", tmp_path / "hf", "--output",
                tmp_path / "no")  # fmt: skip
    assert done.code == 65
    assert "it has 2 labels: a classifier, not a reward model" in done.err


def test_what_cannot_be_scored_is_refused(project):
    folder, _ = project
    done = score(folder, folder / "sft")
    assert done.code == 74
    assert "has no reward head (score.weight)" in done.err
    done = score(folder, folder / "run", "--template", "chimed")
    assert done.code == 78
    assert "was trained with template 'ziya'" in done.err
    for rows, message in (
        ([{"prompt": "发热？"}], "in.jsonl:1: no key 'completion'"),
        ([{"prompt": "发热？", "completion": " "}], "in.jsonl:1: no answer"),
        ([{"completion": "多喝水"}], "in.jsonl:1: no key 'prompt'"),
        ([{"prompt": "a", "completion": "b", "score": 1}], 'a key "score" already'),
        ([{"conversations": [], "completion": "b"}], "there is no question after the last answer"),
        ([], "holds no rows"),
        ([{"prompt": "发热？", "completion": "头痛" * 99}], "1 of 1 rows cannot be scored: row 1"),
    ):
        done = score(folder, folder / "run", rows=rows)
        assert done.code == 65
        assert message in done.err
    source = folder / "in.jsonl"
    done = call("score", "--checkpoint", folder / "run", "--input", source, "--output", source)
    assert done.code == 78
    assert "an input and would be replaced" in done.err


def test_a_reward_model_writes_no_text(project):
    folder, _ = project
    done = call("generate", "--checkpoint", folder / "run", "--prompt", "发热")
    assert done.code == 74
    assert "holds a reward model, which writes no text" in done.err
    path = configure(folder, "more", stage="sft", data={"train": f"{folder}/chat"},
                     checkpoint={"load": str(folder / "run")})  # fmt: skip
    done = call("train", "--config", path)
    assert done.code == 78
    assert "holds a reward model, which has no language-model head" in done.err


def test_a_run_stopped_on_the_way_ends_like_an_unbroken_one(project):
    folder, _ = project
    path = configure(
        folder,
        "broken",
        data={"train": f"{folder}/train", "valid": f"{folder}/held"},
        optim={"lr": 3e-3},
        training={"train_steps": 24},
        checkpoint={"load": str(folder / "sft")},
    )
    train(path, "--training.stop_step", 10)
    assert "resumed from" in train(path)
    ours, unbroken = (
        CheckpointReader(folder / run / "checkpoints/iter_0000024") for run in ("broken", "run")
    )
    for key in unbroken.tensors:
        assert torch.equal(ours.read(key), unbroken.read(key)), key


def test_an_export_without_its_head_is_refused(project, tmp_path):
    """By a run that starts from a reward model, or by an import."""
    folder, _ = project
    call("convert_checkpoint", "export-hf", "--checkpoint", folder / "run", "--output",
         tmp_path / "hf")  # fmt: skip
    tensors = load_file(tmp_path / "hf/model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, tmp_path / "hf/model.safetensors", metadata={"format": "pt"})
    done = call("convert_checkpoint", "import-hf", "--input", tmp_path / "hf", "--output",
                tmp_path / "back")  # fmt: skip
    assert done.code == 65
    assert "score.weight is missing" in done.err


def test_data_of_other_stages_and_several_templates_are_refused(project):
    folder, _ = project
    done = call("train", "--config", configure(folder, "a", data={"train": f"{folder}/chat"}))
    assert done.code == 78
    assert "with --stage sft, but this run trains on preference data" in done.err
    preprocess(folder, folder / "held.jsonl", "other", template="chimed")
    blend = [{"prefix": f"{folder}/train"}, {"prefix": f"{folder}/other"}]
    done = call("train", "--config", configure(folder, "b", data={"train": blend}))
    assert done.code == 78
    assert "train has template 'ziya' (identity " in done.err and "other has 'chimed'" in done.err
    path = configure(folder, "c", stage="sft", data={"train": f"{folder}/chat"},
                     model={"head": "score"})  # fmt: skip
    done = call("train", "--config", path)
    assert done.code == 78
    assert "model.head is score, but stage sft learns words" in done.err


def test_a_pair_with_equal_sides_is_counted_and_left_out(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train_model())
    rows = [*pairs(["发热"]), {"question": "咳嗽？", "response_chosen": LINES[0],
                              "response_rejected": LINES[0]}]  # fmt: skip
    corpus = write_jsonl(tmp_path / "data.jsonl", rows)
    words = commands.preprocess_words(tmp_path, corpus, "data")
    done = call("preprocess_data", *words, "--stage", "preference", "--template", "ziya",
                "--max-bad-rate", 0.5)  # fmt: skip
    assert done.code == 0, done.err
    assert "2 rows: 1 malformed" in done.out + done.err
    listed = (tmp_path / "data.quarantine.jsonl").read_text(encoding="utf-8")
    assert "answers 1 and 2 are equal" in listed
