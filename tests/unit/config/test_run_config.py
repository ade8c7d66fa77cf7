"""The configuration of a run: files, overrides, what is refused, and the way back to a file."""

import dataclasses

import pytest
import yaml

from megatron_chimed.config.inference_flags import inference_flag
from megatron_chimed.config.parsing import ConfigParser, config_of, settings_of
from megatron_chimed.config.run_config import RunConfig, setting_names, settings_called
from megatron_chimed.data.datasets.config import BlendSource
from megatron_chimed.errors import ConfigError

LEAST = {
    "output_dir": "runs/a",
    "tokenizer": "tokenizer.model",
    "data": {"train": "data/train"},
    "training": {"train_steps": 30},
}


def parse_words(words):
    parser = ConfigParser(RunConfig, "train", "Trains.")
    return parser.config(parser.parse_args([str(word) for word in words]))


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
        return parse_words([*arguments, *overrides])

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
    config = parse_words(before)
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
    flags = ["--output-dir=o", "--tokenizer=t", "--data.train=p", "--training.train_steps=3"]
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
        ({"wrong": 1}, "0.yaml: unknown key 'wrong' (known: stage, device, output_dir"),
        ({"modle": {}}, "0.yaml: unknown key 'modle' (did you mean model?)"),
        ({"preset": "tiny"}, "0.yaml: unknown key 'preset'"),
        (
            {"lora": {"load_in_4bit": True}},
            "0.yaml: unknown key 'lora.load_in_4bit': weights are fp32, bf16 or fp16, never "
            "quantized, so QLoRA and 4-bit loading are not supported. With few GPUs: LoRA on",
        ),
        ({"qlora": {"rank": 8}}, "0.yaml: unknown key 'qlora': weights are fp32, bf16 or fp16"),
        ({"model": {"hiden_size": 3}}, "'model.hiden_size' (did you mean hidden_size?)"),
        ({"data": {"train": "p", "seq_len": 3}}, "'data.seq_len' (did you mean seq_length?)"),
        ({"logging": {"wandb": {"mod": 1}}}, "'logging.wandb.mod' (did you mean mode?)"),
        ({"model": {"num_layers": "many"}}, "model.num_layers is 'many': it must be a whole num"),
        ({"model": {"num_layers": 2.5}}, "model.num_layers is 2.5: it must be a whole number."),
        ({"model": {"num_layers": None}}, "model.num_layers is null: it must be a whole number."),
        ({"model": {"num_layers": [2]}}, "model.num_layers is [2]: it must be a whole number."),
        ({"model": {"num_layers": {"a": 2}}}, "num_layers is {a: 2}: it must be a whole number."),
        ({"training": {"train_steps": True}}, "train_steps is true: it must be a whole number or"),
        ({"tokenizer": 3}, "0.yaml: tokenizer is 3: it must be a string."),
        ({"lora": {"targets": "q_proj"}}, "targets is 'q_proj': it must be a list of values that"),
        ({"lora": {"targets": ["x"]}}, "lora.targets[0] is 'x': it must be one of q_proj, k_proj"),
        ({"training": {"train_steps": None}}, "nothing says how long to train"),
        ({"training": {"seed": 1}}, "Set --training.epochs, the number of passes over the data"),
        ({"training": {"train_steps": 3, "epochs": 2}}, "train_steps is 3 and --training.epochs 2"),
        ({"training": {"epochs": 0}}, "--training.epochs is 0: set it above 0"),
        ({"training": {"epochs": float("nan")}}, "--training.epochs is nan"),
        (
            {"training": {"train_steps": 3, "precision": "fp8"}},
            "'fp8': it must be one of fp32",
        ),
        ({"parallel": {"sequence_parallel": "maybe"}}, "'maybe': it must be true or false."),
        ({"data": {"train": [{"weight": 2}]}}, "data.train[0].prefix is missing: Path without"),
        ({"data": {"train": [{"prefix": "a", "wight": 2}]}}, "'data.train[0].wight' (did you mean"),
        ({"data": {"train": [{"prefix": 1}]}}, "data.train[0].prefix is 1: it must be a string."),
        ({"data": {"train": 3}}, "data.train is 3: it must be a string or a list of mappings with"),
        ({"data": {}}, "nothing sets data.train. Set it in a file for --config, or with --data."),
        ({"stage": "cook"}, "stage is 'cook': it must be one of pretrain, sft, reward, dpo."),
        ({"model": 3}, "0.yaml: model is 3, but it is a section: give its keys"),
        ({"optim": None}, "optim is null, but it is a section"),
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
        ({"model": {"hidden_size": "abc"}}, "0.yaml: model.hidden_size is 'abc': it must be a wh"),
        ({"model": {"vocab_size": "x"}}, "model.vocab_size is 'x': it must be a whole number or"),
        (
            {"parallel": {"pipeline_split": ["a"]}},
            "pipeline_split[0] is 'a': it must be a wh",
        ),
        ({"data": {"train": "p", "prefetch": 10**9}}, "data.prefetch is 1000000000"),
        ({"logging": {"log_interval": 10**30}}, "no setting takes a number as large"),
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
        ("[1, 2]", "0.yaml holds a list, not a mapping of keys"),
        ("", "0.yaml is empty"),
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
    assert "gone.yaml cannot be read: No such file or directory" in message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--modle.num_layers", "3"], "--modle.num_layers is unknown (did you mean --model.num_"),
        (["--training.train_step", "5"], "--training.train_step is unknown (did you mean --train"),
        (["--optim.weight", "0.3"], "--optim.weight is unknown"),
        (["--output_dir", "a"], "--output_dir is called --output-dir now"),
        (["--print_config"], "--print_config is called --print-config now"),
        (["--model", "{num_layers: 3}"], "--model is unknown"),
        (["extra"], "unrecognized arguments: extra"),
        (["--model.num_layers"], "--model.num_layers: expected one argument"),
        (["--model.num_layers", "many"], "--model.num_layers is 'many': it must be a whole number"),
        (["--model.num_layers=[2]"], "--model.num_layers is [2]: it must be a whole number."),
        (["--model.num_layers=null"], "--model.num_layers is null: it must be a whole number."),
        (["--optim.lr", "fast"], "--optim.lr is 'fast': it must be a number."),
        (["--training.precision", "fp8"], "is 'fp8': it must be one of fp32, bf16, fp16."),
        (["--data.train", "[{prefx: a}]"], "'data.train[0].prefx' (did you mean prefix?)"),
    ],
)
def test_wrong_flags(parse, flags, message):
    with pytest.raises(ConfigError) as caught:
        parse(LEAST, overrides=flags)
    assert message in str(caught.value)
    assert "class" not in str(caught.value) and "\n" not in str(caught.value)


def test_values_of_flags(parse):
    flags = ["--optim.lr", "1e-4", "--optim.min_lr", "0", "--checkpoint.load", "null"]
    flags += ["--checkpoint.resume", "false", "--tokenizer", "123", "--logging.progress", "off"]
    flags += ["--data.train", "[{prefix: a, weight: 2}, {prefix: b}]", "--data.valid", "1,2"]
    flags += ["--lora.targets", "[q_proj]", "--training.epochs=null"]
    config = parse(LEAST, overrides=flags)
    assert (config.optim.lr, config.optim.min_lr, config.checkpoint.load) == (1e-4, 0.0, None)
    assert isinstance(config.optim.min_lr, float)
    assert (config.checkpoint.resume, config.tokenizer) == (False, "123")
    assert (config.logging.progress, config.data.valid) == ("off", "1,2")
    assert config.data.train[0] == BlendSource(prefix="a", weight=2.0)
    assert config.lora.targets == ("q_proj",)


def test_numbers_that_yaml_reads_as_something_else(parse):
    """YAML 1.1 reads 1e-4 as a string and a plain off as false."""
    text = yaml.safe_dump(LEAST) + "optim: {lr: 1e-4}\nlogging: {progress: off}\n"
    config = parse(text)
    assert (config.optim.lr, config.logging.progress) == (1e-4, "off")


def test_a_printed_configuration_is_a_file(capsys, tmp_path):
    """What is required and not given is null there, and then an error that names it."""
    with pytest.raises(SystemExit) as ended:
        parse_words(["--print-config", "--optim.lr", "3e-4", "--data.train", "[{prefix: a}]"])
    assert ended.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["optim"]["lr"], printed["tokenizer"]) == (3e-4, None)
    assert printed["data"]["train"] == [{"prefix": "a", "weight": 1.0}]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(printed))
    flags = ["--config", tmp_path / "run.yaml", "--output-dir", "o"]
    with pytest.raises(ConfigError, match=r"run.yaml: tokenizer is null: it must be a string"):
        parse_words(flags)
    assert parse_words([*flags, "--tokenizer", "t", "--training.train_steps", "3"]).optim.lr == 3e-4


def test_what_is_missing_is_named(parse):
    with pytest.raises(ConfigError) as caught:
        parse({"stage": "sft"})
    assert str(caught.value) == (
        "nothing sets output_dir, tokenizer, data.train. Set it in a file for --config, or with "
        "--output-dir VALUE --tokenizer VALUE --data.train VALUE."
    )


def test_defaults_of_the_caller_replace_those_of_the_class():
    config = config_of(LEAST, RunConfig, named="x", defaults={"model.num_layers": 3, "optim.lr": 2})
    assert (config.model.num_layers, config.optim.lr) == (3, 2.0)


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
    again = parse_words(["--config", tmp_path / "saved.yaml"])
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
    with pytest.raises(ConfigError, match="3 ranks cannot be split"):
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
        with pytest.raises(ConfigError) as caught, settings_called(inference_flag):
            raise ConfigError(f"bad. Set --{key}.")
        assert str(caught.value) == told


def test_a_configuration_cannot_be_changed(parse):
    config = parse(LEAST)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.output_dir = "other"


def test_every_field_is_in_the_help():
    """Each with its sentence: a field without a docstring would show its name alone."""
    shown = ConfigParser(RunConfig, "train", "Trains.").format_help()
    settings = list(settings_of(RunConfig))
    assert {"stage", "optim.lr", "logging.wandb.mode"} <= {setting.key for setting in settings}
    for setting in settings:
        assert setting.help, setting.key
        assert f"{setting.flag} " in shown, setting.key
    words = " ".join(shown.split())
    assert "Ranks that share each weight matrix. (a whole number; default: 1)" in words
    assert "Tokens per sample. (a whole number; default: 2048)" in words
    assert "Optimizer steps of the whole run; or set `epochs`." in words


def test_a_key_given_twice_in_a_file_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("optim:\n  lr: 0.1\n  lr: 0.2\n")
    with pytest.raises(ConfigError, match=r"twice\.yaml is not YAML: duplicate keys: lr"):
        parse_words(["--config", path])


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
