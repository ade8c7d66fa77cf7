"""One chat template for the data, the checkpoint that a run starts from, and the one it leaves."""

import json

import pytest
import yaml

from megatron_chimed.checkpoint.reader import CheckpointReader, newest_checkpoint
from megatron_chimed.data.datasets.sidecar import read_sidecar
from megatron_chimed.data.templates import load_template
from tests.integration.commands import call
from tests.integration.preferences import configure, pairs, preprocess, train, write_jsonl
from tests.unit.data.prefixes import edit_sidecar
from tests.unit.tokenizer.samples import train_model

ZIYA, CHIMED = (load_template(name).identity[:12] for name in ("ziya", "chimed"))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Data of each stage in two templates, and a model `sft` that learned `ziya`."""
    folder = tmp_path_factory.mktemp("templates")
    (folder / "tokenizer.model").write_bytes(train_model())
    topics = ("发热", "咳嗽", "患者", "入院")
    chats = [{"instruction": f"{topic}？", "input": "", "output": "口服"} for topic in topics]
    chats = write_jsonl(folder / "chats.jsonl", chats)
    ranked = write_jsonl(folder / "pairs.jsonl", pairs(topics))
    for template, names in (("ziya", ("chat", "train")), ("chimed", ("other_chat", "other_pairs"))):
        preprocess(folder, chats, names[0], stage="sft", template=template)
        preprocess(folder, ranked, names[1], template=template)
    train(configured(folder, "sft", data={"train": f"{folder}/chat"}))
    return folder


def configured(folder, name, stage="sft", **sections):
    """The configuration of a run of one step."""
    return configure(folder, name, stage=stage, training={"train_steps": 1}, **sections)


def refused(folder, stage, **sections):
    """What a run that may not start says; nothing is left of it."""
    done = call("train", "--config", configured(folder, "no", stage, **sections))
    assert done.code == 78, done.err
    assert done.err.count("\n") == 1
    assert "Preprocess one of them again" in done.err
    assert "or allow it: --data.allow_other_template true" in done.err
    assert not (folder / "no").exists()
    return done.err


def names_of(stage):
    return ("chat", "other_chat") if stage == "sft" else ("train", "other_pairs")


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_data_of_two_templates_are_refused(project, stage, part):
    ours, others = (f"{project}/{name}" for name in names_of(stage))
    data = {"train": ours, part: others}
    if part == "train":
        data = {"train": [{"prefix": ours}, {"prefix": others}]}
    said = refused(project, stage, data=data, checkpoint={"load": str(project / "sft")})
    assert f"data.train {ours} has template 'ziya' (identity {ZIYA})" in said
    assert f"data.{part} {others} has 'chimed' (identity {CHIMED})" in said


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_a_checkpoint_of_another_template_is_refused(project, stage):
    _, others = names_of(stage)
    said = refused(
        project,
        stage,
        data={"train": f"{project}/{others}"},
        checkpoint={"load": str(project / "sft")},
    )
    assert f"{project}/sft/checkpoints/iter_0000001 has template 'ziya' (identity {ZIYA})" in said
    assert f"data.train has 'chimed' (identity {CHIMED})" in said


def test_a_template_is_known_by_what_it_writes_not_by_its_name(project, tmp_path):
    names = {"separator": "\n", "name": "ziya"}, {"name": "other", "separator": ""}
    fields = {"prompt": "<human>:{question}\n<bot>:", "tags": list(load_template("ziya").tags)}
    for changes, name in zip(names, ("same_name", "same_frame"), strict=True):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(fields | changes))
        preprocess(project, project / "chats.jsonl", name, stage="sft", template=path)
    load = {"load": str(project / "sft")}
    said = refused(project, "sft", data={"train": f"{project}/same_name"}, checkpoint=load)
    assert f"has template 'ziya' (identity {ZIYA}), but data.train has 'ziya' (identity " in said
    blend = [{"prefix": f"{project}/{name}"} for name in ("chat", "same_frame")]
    train(configured(project, "same", data={"train": blend}, checkpoint=load))


def test_what_is_allowed_is_stored_by_the_first_prefix(project):
    blend = [{"prefix": f"{project}/{name}"} for name in ("other_chat", "chat")]
    data = {"train": blend, "allow_other_template": True}
    path = configured(project, "mixed", data=data, checkpoint={"load": str(project / "sft")})
    train(path)
    reader = CheckpointReader(newest_checkpoint(project / "mixed"))
    assert reader.config["template"]["identity"] == load_template("chimed").identity
    words = ("--training.train_steps", 2, "--data.allow_other_template", "false")
    done = call("train", "--config", path, *words)
    assert done.code == 78 and "data.train" in done.err


def test_a_resumed_run_is_asked_too(project):
    """Its data can be the same tokens under the name of another template."""
    sidecar = project / "chat.meta.json"
    before = sidecar.read_bytes()
    made = json.loads(before)["rendering"]
    made |= {"template": "chimed", "template_identity": load_template("chimed").identity}
    edit_sidecar(sidecar, rendering=made)
    try:
        words = ("--training.train_steps", 2)
        done = call(
            "train",
            "--config",
            configured(project, "sft", data={"train": f"{project}/chat"}),
            *words,
        )
    finally:
        sidecar.write_bytes(before)
    assert done.code == 78
    assert f"sft/checkpoints/iter_0000001 has template 'ziya' (identity {ZIYA})" in done.err


def test_conversations_without_a_template_are_refused(project):
    sidecar = project / "chat.meta.json"
    before = sidecar.read_bytes()
    edit_sidecar(sidecar, rendering=None)
    try:
        assert read_sidecar(sidecar).rendering is None
        path = configured(project, "none", data={"train": f"{project}/chat"})
        done = call("train", "--config", path)
        assert done.code == 65
        assert f"data.train {project}/chat: its .meta.json does not name the" in done.err
    finally:
        sidecar.write_bytes(before)
