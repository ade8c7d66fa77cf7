"""What a declaration may say, what it comes to, and what is refused before anything runs."""

import sys

import pytest
import yaml

from megatron_chimed.errors import ConfigError
from megatron_chimed.workflow.declaration import load_pipeline
from megatron_chimed.workflow.kinds import KINDS
from megatron_chimed.workflow.work import prepare
from tests.unit.workflow.fakes import ROOT, make_project
from tools.run_pipeline import preset

TOOLS = ROOT / "tools"
MODEL = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "ffn_hidden_size": 48,
    "max_position_embeddings": 64,
}
RUN = {
    "tokenizer": "${tokens}",
    "model": MODEL,
    "data": {
        "train": [{"prefix": "${data}", "weight": 0.7}, {"prefix": "other", "weight": 0.3}],
        "seq_length": 16,
    },
    "training": {"train_steps": 3, "seed": 5, "precision": "fp32"},
}
DATA = {
    "tokens": {"kind": "tokenizer", "options": {"input": "a.txt", "vocab-size": 400}},
    "data": {
        "kind": "preprocess",
        "options": {"input": ["a.txt", "b.txt"], "tokenizer": "${tokens}", "append-eod": False},
    },
}


@pytest.fixture
def declare(tmp_path):
    """Writes and loads a declaration: (pipeline, works)."""

    def make(steps, tools=TOOLS, **more):
        path = tmp_path / "p.yaml"
        content = {"folder": "runs/x", "steps": steps, **more}
        path.write_text(
            steps if isinstance(steps, str) else yaml.safe_dump(content, sort_keys=False)
        )
        pipeline = load_pipeline(path)
        return pipeline, prepare(pipeline, tools, preset)

    return make


def test_options_become_the_words_of_the_command(declare):
    _, (tokens, data) = declare(DATA)
    assert data.command == (
        sys.executable,
        str(TOOLS / "preprocess_data.py"),
        *("--input", "a.txt", "b.txt"),
        *("--tokenizer=runs/x/tokens", "--no-append-eod", "--output-prefix=runs/x/data"),
    )
    assert data.needs == ("tokens",)
    found = [(item.key, item.path, item.content, item.step) for item in data.inputs]
    assert found == [
        ("input", "a.txt", "files", None),
        ("input", "b.txt", "files", None),
        ("tokenizer", "runs/x/tokens", "tokenizer", "tokens"),
    ]
    assert tokens.seeds == {}


def test_a_training_step_is_resolved_and_its_inputs_are_found_in_the_configuration(
    declare, tmp_path
):
    base = tmp_path / "base.yaml"
    base.write_text("training: {train_steps: 9, global_batch_size: 2}\noutput_dir: elsewhere\n")
    steps = DATA | {"run": {"kind": "train", "config": str(base), "settings": RUN}}
    _, works = declare(steps, launch={"nproc": 2})
    run = works[-1]
    assert run.config["output_dir"] == "runs/x/run"
    assert run.config["training"]["train_steps"] == 3
    assert run.config["training"]["global_batch_size"] == 2
    assert run.config["optim"]["adam_beta2"] == 0.95  # a default
    assert run.seeds == {"training.seed": 5}
    assert [(i.key, i.path, i.step) for i in run.inputs] == [
        ("tokenizer", "runs/x/tokens", "tokens"),
        ("data.train", "runs/x/data", "data"),
        ("data.train", "other", None),
    ]
    assert run.result_config()["data.train"] == [{"weight": 0.7}, {"weight": 0.3}]
    assert "output_dir" not in run.result_config()
    assert run.command == (
        *(sys.executable, str(TOOLS / "launch.py"), "--nproc-per-node", "2"),
        *("--run-folder", "runs/x/run", str(TOOLS / "train.py")),
        *("--config", "runs/x/configs/run.yaml"),
    )


def test_a_launcher_of_the_users_own(declare):
    launch = {"command": ["srun", "${python}", "launch.py", "--run-folder", "${output}"]}
    steps = DATA | {"run": {"kind": "train", "settings": RUN, "launch": launch}}
    _, works = declare(steps)
    assert works[-1].command[:4] == ("srun", sys.executable, "launch.py", "--run-folder")
    assert works[-1].command[4:6] == ("runs/x/run", str(TOOLS / "train.py"))


def test_a_part_of_an_output_and_an_undeclared_reference_are_inputs(declare, tmp_path):
    project = make_project(tmp_path)
    steps = DATA | {
        "answers": {
            "kind": "generate",
            "options": {"checkpoint": "${tokens}/iter_0000001", "text": "x${data}y"},
        }
    }
    (project.tools / "preprocess_data.py").write_text(
        "print('--input --tokenizer --no-append-eod')"
    )
    (project.tools / "train_tokenizer.py").write_text("print('--input --vocab-size')")
    _, works = declare(steps, tools=project.tools)
    found = [(item.key, item.path, item.content, item.step) for item in works[-1].inputs]
    assert found == [
        ("checkpoint", "runs/x/tokens/iter_0000001", "checkpoint", "tokens"),
        ("${data}", "runs/x/data", "prefix", "data"),
    ]


def test_every_kind_names_flags_that_its_command_has(tmp_path):
    for name, kind in KINDS.items():
        if (TOOLS / kind.tool).is_file() and kind.config == "none":
            options = {key: "x" for key in (*kind.inputs, *kind.repeated)}
            path = tmp_path / "p.yaml"
            steps = {"step": {"kind": name, "options": options}}
            path.write_text(yaml.safe_dump({"folder": "f", "steps": steps}))
            (work,) = prepare(load_pipeline(path), TOOLS, preset)
            assert f"--{kind.output}=f/step{kind.suffix}" in work.command


def one(**step):
    return {"one": {"kind": "tokenizer", **step}}


@pytest.mark.parametrize(
    ("steps", "fragment"),
    [
        ("folder: [", "is not YAML"),
        ("folder: x\nfolder: y", "duplicate keys: folder"),
        ("folder: x\nsteps: {}", "it needs `folder: PATH` and `steps:`"),
        ("folder: x\nstep: {}", "unknown key 'step' (did you mean steps?)"),
        (
            one(kind="tokeniser"),
            "step one: kind 'tokeniser' is not known (did you mean tokenizer?)",
        ),
        (one(option={}), "unknown key 'option' (did you mean options?)"),
        (one(options={"input": "${two}"}), "${two} names no step before this one"),
        (one(options={"input": "${one}"}), "${one} names no step before this one"),
        (one(options={"vocab-sise": 3}), "has no flag --vocab-sise (did you mean vocab-size?)"),
        (one(options={"output": "x"}), "the pipeline sets output: say `output: PATH`"),
        (one(options={"text-key": None}), "option text-key is None"),
        (one(settings={"a": 1}), "train_tokenizer.py takes no configuration"),
        (one(preset="tiny"), "train_tokenizer.py takes no preset"),
        ({"a": {"kind": "train", "options": {"lr": 1}}}, "train.py takes a configuration: give"),
        (one(launch={"nproc": 2}), "train_tokenizer.py runs as one process"),
        (one(inputs=3), "inputs is 3, not a path or a list of paths"),
        ({"Logs": {"kind": "merge"}}, "'Logs' cannot be a step's name"),
        ({"a": {"kind": "merge"}, "b": {"kind": "merge", "output": "runs/x/a"}}, "another step"),
        ({"a": {"kind": "train", "launch": {"nproc": 0}}}, "give `nproc`, 1 or more"),
        ({"a": {"kind": "train", "launch": {"command": [1]}}}, "not a list of words"),
        ({"a": {"kind": "train", "settings": {"training": {"train_step": 1}}}}, "step a: "),
        (
            {"a": {"kind": "train", "preset": "tini"}},
            "preset 'tini' is unknown (did you mean tiny?)",
        ),
        ({"a": {"kind": "train", "config": "no.yaml"}}, "no.yaml cannot be read"),
        ("folder: x\nsteps: {a: {kind: merge, options: {inputs: 2024-01-01}}}", "is a date"),
    ],
)
def test_what_is_refused(declare, steps, fragment):
    with pytest.raises(ConfigError) as error:
        declare(steps)
    assert fragment in str(error.value)


def test_a_layout_that_does_not_fit_its_ranks_is_refused_before_anything_runs(declare):
    settings = RUN | {"parallel": {"tensor_parallel_size": 2}}
    with pytest.raises(ConfigError, match="step run: .*tensor_parallel_size"):
        declare(DATA | {"run": {"kind": "train", "settings": settings}})


def test_a_kind_whose_command_is_not_there_is_refused(declare, tmp_path):
    with pytest.raises(
        ConfigError, match="it needs tools/evaluate.py, which this version does not"
    ):
        declare({"scores": {"kind": "evaluate"}}, tools=tmp_path)


def test_the_configuration_of_other_commands_is_merged(declare, tmp_path):
    (tmp_path / "evaluate.py").touch()
    for name, text in (("a", "rounds: 1\nscore: {top: 1, seed: 4}"), ("b", "score: {top: 2}")):
        (tmp_path / f"{name}.yaml").write_text(text)
    step = {
        "kind": "evaluate",
        "config": [str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")],
        "settings": {"rounds": 3},
    }
    _, (work,) = declare({"rounds": step}, tools=tmp_path)
    assert work.config == {
        "rounds": 3,
        "score": {"top": 2, "seed": 4},
        "output_dir": "runs/x/rounds",
    }
    assert work.seeds == {"score.seed": 4}


def test_rounds_are_checked_and_resolved(declare):
    settings = {"policy": "runs/sft", "reward_model": "runs/reward", "prompts": {"train": ["a"]}}
    _, (work,) = declare({"rounds": {"kind": "rejection", "settings": settings}})
    assert work.config["selection"]["per_prompt"] == 1
    assert [(item.key, item.path, item.content) for item in work.inputs] == [
        ("policy", "runs/sft", "checkpoint"),
        ("reward_model", "runs/reward", "checkpoint"),
        ("prompts.train", "a", "files"),
    ]
    wrong = settings | {"selection": {"per_prompt": -1}}
    with pytest.raises(ConfigError, match=r"step rounds: .*per_prompt"):
        declare({"rounds": {"kind": "rejection", "settings": wrong}})
