"""The configuration of a run: files, overrides, what is refused, and the way back to a file."""

import dataclasses

import pytest
import yaml

from megatron_chimed.command_line import model_flag
from megatron_chimed.config import (
    RunConfig,
    make_parser,
    parse_run_config,
    setting_names,
    settings_called,
)
from megatron_chimed.data.datasets.config import BlendSource
from megatron_chimed.errors import ConfigError

LEAST = {
    "output_dir": "runs/a",
    "tokenizer": "tokenizer.model",
    "data": {"train": "data/train"},
    "training": {"train_steps": 30},
}


@pytest.fixture
def parse(tmp_path):
    """Writes each configuration to a file, in order, then reads them all with the overrides."""

    def read(*configs, overrides=()):
        arguments = []
        for number, config in enumerate(configs):
            path = tmp_path / f"{number}.yaml"
            text = config if isinstance(config, str) else yaml.safe_dump(config)
            path.write_text(text, encoding="utf-8")
            arguments += ["--config", str(path)]
        return parse_run_config(make_parser("train", "Trains."), [*arguments, *overrides])

    return read


def test_a_file_and_defaults(parse):
    config = parse(LEAST)
    assert (config.output_dir, config.training.train_steps) == ("runs/a", 30)
    assert config.model.vocab_size is None, "the tokenizer's, which no file need repeat"
    assert config.model.with_vocabulary(39424).num_parameters == 13_091_886_080
    assert config.parallel.timeout_seconds == 600.0
    assert config.optim.adam_beta2 == 0.95


def test_overrides_win_wherever_they_stand(parse, tmp_path):
    assert parse(LEAST, overrides=["--training.train_steps", "7"]).training.train_steps == 7
    path = tmp_path / "0.yaml"
    before = ["--training.seed", "5", "--config", str(path), "--optim.lr=2e-3"]
    config = parse_run_config(make_parser("train", ""), before)
    assert config.optim.lr == 2e-3
    # A file that does not name a key leaves what was said before.
    assert config.training.seed == 5


def test_a_second_file_changes_what_it_names(parse):
    second = {"output_dir": "runs/b", "model": {"num_layers": 2}, "training": {"seed": 9}}
    config = parse({**LEAST, "model": {"num_layers": 8, "rms_norm_eps": 1e-5}}, second)
    assert (config.output_dir, config.tokenizer) == ("runs/b", "tokenizer.model")
    assert (config.model.num_layers, config.model.rms_norm_eps) == (2, 1e-5)
    assert (config.training.train_steps, config.training.seed) == (30, 9)


def test_without_a_file(parse):
    flags = ["--output_dir=o", "--tokenizer=t", "--data.train=p", "--training.train_steps=3"]
    config = parse(overrides=[*flags, "--parallel.pipeline_split", "[1, 3]"])
    assert config.parallel.pipeline_split == (1, 3)
    assert config == RunConfig(
        output_dir="o",
        tokenizer="t",
        data=dataclasses.replace(config.data),
        training=dataclasses.replace(config.training),
        parallel=dataclasses.replace(config.parallel),
    )


def test_a_blend(parse):
    rows = [{"prefix": "a", "weight": 2}, {"prefix": "b"}]
    config = parse({**LEAST, "data": {"train": rows}})
    expected = (BlendSource(prefix="a", weight=2.0), BlendSource(prefix="b", weight=1.0))
    assert config.data.train == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wrong": 1, "modle": {}}, "0.yaml has unknown keys: modle, wrong"),
        ({"preset": "tiny"}, "0.yaml has unknown keys: preset"),
        ({"model": {"hiden_size": 3}}, "'model' does not accept option 'hiden_size'"),
        ({"data": {"train": "p", "seq_len": 3}}, "does not accept option 'seq_len'"),
        ({"model": {"num_layers": "many"}}, "--model.num_layers is many: it must be int"),
        ({"model": {"num_layers": 2.5}}, "--model.num_layers is 2.5: it must be int"),
        ({"training": {"train_steps": True}}, "training.train_steps"),
        ({"training": {"train_steps": None}}, "the length of the run is not set"),
        ({"training": {"seed": 1}}, "Set --training.epochs, the passes over the data, such as 3"),
        ({"training": {"train_steps": 3, "epochs": 2}}, "train_steps is 3 and --training.epochs 2"),
        ({"training": {"epochs": 0}}, "--training.epochs is 0: set it above 0"),
        ({"training": {"epochs": float("nan")}}, "--training.epochs is nan"),
        ({"training": {"train_steps": 3, "precision": "fp8"}}, "one of 'fp32', 'bf16', 'fp16'"),
        ({"parallel": {"sequence_parallel": "maybe"}}, "parallel.sequence_parallel"),
        ({"data": {"train": [{"weight": 2}]}}, "data.train"),
        ({"stage": "cook"}, "stage"),
        ({"model": 3}, "model is 3, but it is a section"),
        ({"optim": None}, "optim is None, but it is a section"),
        ({"optim": {"lr": -1}}, "--optim.lr is -1"),
        ({"data": {"train": "p", "split": "9,1", "valid": "q"}}, "Remove one of them"),
        ({"checkpoint": {"keep": 1}}, "--checkpoint.keep is 1"),
        ({"logging": {"log_interval": 0}}, "log_interval (0)"),
        ({"training": {"train_steps": 3, "early_stop_patience": 2}}, "eval_interval"),
        ({"parallel": {"tensor_parallel_size": 0}}, "--parallel.tensor_parallel_size is 0"),
        ({"parallel": {"timeout_seconds": float("nan")}}, "--parallel.timeout_seconds is nan"),
        ({"parallel": {"timeout_seconds": 1e300}}, "--parallel.timeout_seconds is 1e+300"),
        ({"model": {"num_layers": 10**7}}, "--model.num_layers is 10000000: no model is as large"),
        ({"model": {"num_attention_heads": 0}}, "--model.num_attention_heads is 0"),
        ({"model": {"hidden_size": "abc"}}, "--model.hidden_size is abc: it must be int (read"),
        ({"model": {"vocab_size": "x"}}, "--model.vocab_size is x: it must be int or null (read"),
        ({"parallel": {"pipeline_split": ["a"]}}, "it must be a list of int or null (read"),
        ({"data": {"train": "p", "prefetch": 10**9}}, "data.prefetch is 1000000000"),
        ({"logging": {"log_interval": 10**30}}, "such a number means nothing here"),
        (
            {"training": {"train_steps": 1, "global_batch_size": 10**12}},
            "--training.global_batch_size is 1000000000000: it must be at least 1, and at most",
        ),
    ],
)
def test_what_is_wrong_is_named_in_one_line(parse, capsys, change, message):
    with pytest.raises(ConfigError) as caught:
        parse({**LEAST, **change})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "functools" not in str(caught.value)
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", ""), "a message is raised, not printed"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b: c", "0.yaml is not YAML: mapping values are not allowed"),
        ("[1, 2]", "0.yaml holds list, not sections such as `model:`"),
        ("", "0.yaml holds NoneType"),
        ("model: {num_layers: 3", "0.yaml is not YAML: .*flow mapping"),
    ],
)
def test_a_file_that_is_no_configuration(parse, text, message):
    with pytest.raises(ConfigError, match=message):
        parse(text)


@pytest.mark.parametrize("flags", [["--config", "gone.yaml"], ["--config=gone.yaml"]])
def test_a_missing_file(parse, flags):
    with pytest.raises(ConfigError) as caught:
        parse(LEAST, overrides=flags)
    message = str(caught.value)
    assert "config file gone.yaml cannot be read: No such file or directory" in message


def test_unknown_flags(parse):
    for flags, message in (
        (["--modle.num_layers", "3"], "--modle.num_layers"),
        (["extra"], "extra"),
        (["--model.num_layers"], "expected one argument"),
    ):
        with pytest.raises(ConfigError) as caught:
            parse(LEAST, overrides=flags)
        assert message in str(caught.value)
        assert "--help" in str(caught.value)


FULL = {
    "output_dir": "跑/甲",
    "tokenizer": "模型.model",
    "model": {"vocab_size": 300, "rope_theta": 5e5, "hidden_dropout": 0.1, "recompute": "full"},
    "parallel": {"pipeline_parallel_size": 2, "pipeline_split": [13, 27], "timeout_seconds": 7.5},
    "data": {
        "train": [{"prefix": "a b", "weight": 0.3}, {"prefix": "#c", "weight": 1e-7}],
        "valid": "v",
        "seq_length": 64,
    },
    "optim": {"lr": 3e-4, "min_lr": 0.0, "warmup_steps": 5, "lr_schedule": "linear"},
    "training": {"train_steps": 9, "eval_interval": 3, "precision": "fp32"},
    "checkpoint": {"load": "no", "keep": 0},
    "logging": {"progress": "off"},
}


@pytest.mark.parametrize("config", [LEAST, FULL], ids=["defaults", "everything"])
def test_a_saved_configuration_reads_back_equal(parse, tmp_path, config):
    first = parse(config)
    first.save(tmp_path / "saved.yaml")
    again = parse_run_config(make_parser("train", ""), ["--config", str(tmp_path / "saved.yaml")])
    assert again == first
    again.save(tmp_path / "twice.yaml")
    saved = [(tmp_path / name).read_bytes() for name in ("saved.yaml", "twice.yaml")]
    assert saved[0] == saved[1]
    assert first.plain() == yaml.safe_load(saved[0])


def test_plain_values_are_json(parse):
    import json

    plain = parse(FULL).plain()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["data"]["train"][1] == {"prefix": "#c", "weight": 1e-7}


def test_sections_are_checked_against_each_other(parse):
    too_long = {**LEAST, "data": {"train": "p", "seq_length": 4096}}
    with pytest.raises(ConfigError) as caught:
        parse(too_long).plan_layout(1)
    assert "data.seq_length (4096) is longer than model.max_position_embeddings (2048)" in str(
        caught.value
    )
    parse(too_long, overrides=["--data.seq_length", "2048"]).plan_layout(1)
    with pytest.raises(ConfigError, match="3 ranks cannot be cut"):
        parse(LEAST, overrides=["--parallel.tensor_parallel_size", "2"]).plan_layout(3)
    with pytest.raises(ConfigError, match="global_batch_size .1. is not a multiple"):
        parse(LEAST).plan_layout(2)
    layout = parse(LEAST, overrides=["--training.global_batch_size", "2"]).plan_layout(2)
    assert layout.describe() == "TP1 x PP1 x DP2"


def test_commands_with_other_names_say_theirs(parse):
    """Every setting has a name there; shared code names it as a flag of tools/train.py."""
    assert {"optim.lr", "training.epochs", "data.train"} <= setting_names()
    for name in setting_names():
        with pytest.raises(ConfigError, match=f"^set --training.settings.{name} to 1.5, or x.$"):
            with settings_called(lambda key: f"training.settings.{key}"):
                raise ConfigError(f"set --{name} to 1.5, or x.")
    for key, told in (
        ("training.precision", "bad. Set --precision."),
        ("parallel.timeout_seconds", "bad."),
    ):
        with pytest.raises(ConfigError) as caught, settings_called(model_flag):
            raise ConfigError(f"bad. Set --{key}.")
        assert str(caught.value) == told


def test_a_configuration_cannot_be_changed(parse):
    config = parse(LEAST)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.output_dir = "other"


def test_every_field_is_in_the_help():
    """Each with its sentence: a field without a docstring would show its name alone."""
    shown = make_parser("train", "Trains.").format_help()
    for field in dataclasses.fields(RunConfig):
        section = field.type if dataclasses.is_dataclass(field.type) else None
        names = [f"{field.name}.{f.name}" for f in dataclasses.fields(section)] if section else []
        for name in names or [field.name]:
            assert f"--{name} " in shown, name
    words = " ".join(shown.split())
    assert "Ranks that share each weight matrix. (type: int, default: 1)" in words
    assert "Tokens per sample. (type: int, default: 2048)" in words
    assert "Optimizer steps of the whole run; alternatively set `epochs`." in words


def test_a_key_given_twice_in_a_file_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("optim:\n  lr: 0.1\n  lr: 0.2\n")
    parser = make_parser("tools/train.py", "")
    with pytest.raises(ConfigError, match=r"twice\.yaml is not YAML: duplicate keys: lr"):
        parse_run_config(parser, ["--config", str(path)])


def test_a_reward_model_gets_its_head(parse):
    reward = {**LEAST, "stage": "reward"}
    config = parse(reward)
    assert config.model.head == "score"
    sizes = [c.model.with_vocabulary(39424).num_parameters for c in (parse(LEAST), config)]
    assert sizes[0] - sizes[1] == 39423 * 5120
    assert parse(reward, overrides=["--model.head", "lm"]).model.head == "score"
    with pytest.raises(ConfigError, match="model.head is score, but stage pretrain learns words"):
        parse(LEAST, overrides=["--model.head", "score"])


def test_dpo_needs_a_reference(parse):
    dpo = {**LEAST, "stage": "dpo", "dpo": {"beta": 0.3, "loss": "ipo"}}
    with pytest.raises(ConfigError, match="stage dpo starts from a model, which stays its ref"):
        parse(dpo)
    config = parse(dpo, overrides=["--checkpoint.load", "runs/sft"])
    assert (config.dpo.beta, config.dpo.loss, config.dpo.label_smoothing) == (0.3, "ipo", 0.0)
    assert config.model.head == "lm"
