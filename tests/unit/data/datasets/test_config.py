"""From settings to data sets: parts, blends, and the tokenizer of the data."""

import numpy as np
import pytest

from megatron_chimed.config.parsing import ConfigParser
from megatron_chimed.data.datasets.blend import BlendedDataset, ConcatenatedDataset
from megatron_chimed.data.datasets.config import BlendSource, DataConfig, build_datasets
from megatron_chimed.data.datasets.preference import PreferenceDataset
from megatron_chimed.data.datasets.pretrain import PretrainDataset
from megatron_chimed.data.datasets.sft import SFTDataset
from megatron_chimed.errors import ConfigError, DataError
from tests.unit.data.packed_prefixes import answered, write_conversations, write_groups
from tests.unit.data.prefixes import IDENTITY, numbered_documents, write_prefix


@pytest.fixture
def prefixes(tmp_path):
    for name in "abc":
        write_prefix(tmp_path / name, numbered_documents([20] * 10))
    return tmp_path


def build(config, vocab_size=1000, identity=IDENTITY, seed=1, stage="pretrain"):
    return build_datasets(
        config,
        stage=stage,
        vocab_size=vocab_size,
        tokenizer_identity=identity,
        eod_id=2,
        seed=seed,
    )


def test_one_prefix_trains_on_all_of_it(prefixes):
    datasets = build(DataConfig(train=f"{prefixes}/a", seq_length=8))
    assert isinstance(datasets.train, PretrainDataset)
    assert datasets.train.documents == (0, 10)
    assert datasets.train.shuffle
    assert datasets.valid is None and datasets.test is None


def test_a_split_divides_the_documents(prefixes):
    datasets = build(DataConfig(train=f"{prefixes}/a", split="7,2,1", seq_length=8))
    parts = (datasets.train, datasets.valid, datasets.test)
    assert [part.documents for part in parts] == [(0, 7), (7, 9), (9, 10)]
    assert [part.shuffle for part in parts] == [True, False, False]


def test_files_of_their_own_serve_validation_and_test(prefixes):
    config = DataConfig(train=f"{prefixes}/a", valid=f"{prefixes}/b", seq_length=8)
    datasets = build(config)
    assert datasets.valid.indexed.prefix.endswith("/b")
    assert datasets.valid.documents == (0, 10)
    assert datasets.test is None


def test_training_blends_by_weight_and_validation_reads_all_once(prefixes):
    train = (
        BlendSource(prefix=f"{prefixes}/a", weight=3.0),
        BlendSource(prefix=f"{prefixes}/b", weight=1.0),
    )
    datasets = build(DataConfig(train=train, split="8,2", seq_length=8))
    assert isinstance(datasets.train, BlendedDataset)
    assert datasets.train.weights.tolist() == [0.75, 0.25]
    assert isinstance(datasets.valid, ConcatenatedDataset)
    assert [d.documents for d in datasets.valid.datasets] == [(8, 10), (8, 10)]


def test_the_seed_moves_training_samples_only(prefixes):
    config = DataConfig(train=f"{prefixes}/a", split="8,2", seq_length=8)
    one, two = build(config, seed=1), build(config, seed=2)
    assert any((one.train[i]["tokens"] != two.train[i]["tokens"]).any() for i in range(10))
    assert all((one.valid[i]["tokens"] == two.valid[i]["tokens"]).all() for i in range(4))


def test_data_of_another_tokenizer_is_refused_with_both(prefixes):
    with pytest.raises(ConfigError) as caught:
        build(DataConfig(train=f"{prefixes}/a", seq_length=8), identity="f" * 64, vocab_size=2000)
    message = str(caught.value)
    assert "'test.model' (sha256 000000000000, vocabulary 1000)" in message
    assert "sha256 ffffffffffff (vocabulary 2000)" in message


def test_ids_beyond_the_model_are_refused_with_both_numbers(prefixes):
    with pytest.raises(ConfigError, match="token id 199 .*vocabulary 1000.* vocabulary is 150"):
        build(DataConfig(train=f"{prefixes}/a", seq_length=8), vocab_size=150)


def test_the_validation_data_is_checked_too(prefixes):
    write_prefix(prefixes / "other", numbered_documents([50]), tokenizer_sha256="e" * 64)
    config = DataConfig(train=f"{prefixes}/a", valid=f"{prefixes}/other", seq_length=8)
    with pytest.raises(ConfigError, match="eeeeeeeeeeee"):
        build(config)


def test_stock_files_without_a_sidecar_are_taken(prefixes):
    (prefixes / "a.meta.json").unlink()
    assert build(DataConfig(train=f"{prefixes}/a", seq_length=8), identity="x").train is not None


def test_a_missing_file_is_named(prefixes):
    with pytest.raises(ConfigError, match=r"nowhere\.bin does not exist"):
        build(DataConfig(train=f"{prefixes}/nowhere", seq_length=8))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_beyond_64_bits_is_refused(prefixes, seed):
    with pytest.raises(ConfigError, match=f"seed is {seed}; it must be a number from 0"):
        build(DataConfig(train=f"{prefixes}/a", seq_length=8), seed=seed)


def test_too_little_data_is_an_error(prefixes):
    with pytest.raises(DataError, match="seq_length 400 takes 401"):
        build(DataConfig(train=f"{prefixes}/a", seq_length=400))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": ""}, "data.train names no prefix"),
        ({"train": ()}, "data.train names no prefix"),
        ({"train": "a", "valid": ""}, "data.valid names no prefix"),
        ({"train": "a", "seq_length": 0}, "data.seq_length is 0"),
        ({"train": "a", "prefetch": -1}, "data.prefetch is -1"),
        ({"train": "a", "split": "x"}, "split 'x' is not up to three weights"),
        ({"train": "a", "split": "9,1", "valid": "b"}, "cannot be given together with data.valid"),
        ({"train": "a", "split": "0,9,1"}, "gives training no documents"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**fields)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_blend_weights_are_positive(weight):
    with pytest.raises(ConfigError, match="data 'a': weight is"):
        BlendSource(prefix="a", weight=weight)


def test_yaml_and_the_command_line_can_say_all_of_it():
    parser = ConfigParser(DataConfig, "test")
    one = parser.config(parser.parse_args(["--train", "a", "--split", "9,1"]))
    assert one == DataConfig(train="a", split="9,1")
    blend = "[{prefix: a, weight: 2}, {prefix: b}]"
    words = ["--train", blend, "--valid", "c", "--seq-length", "16"]
    sources = (BlendSource(prefix="a", weight=2.0), BlendSource(prefix="b"))
    expected = DataConfig(train=sources, valid="c", seq_length=16)
    assert parser.config(parser.parse_args(words)) == expected


def test_samples_of_a_blend_say_where_they_are_from(prefixes):
    train = (BlendSource(prefix=f"{prefixes}/a", weight=3.0), BlendSource(prefix=f"{prefixes}/b"))
    datasets = build(DataConfig(train=train, split="8,2", seq_length=8))
    assert datasets.sources == ("a", "b")
    sources = [int(datasets.train[i]["source"]) for i in range(8)]
    assert sorted(sources) == [0] * 6 + [1] * 2
    for part in (datasets.train, datasets.valid):
        for index in range(4):
            name = datasets.sources[part[index]["source"]]
            assert part.locate(index).startswith(f"{prefixes}/{name}, ")


def test_parts_of_other_files_have_sources_of_their_own(prefixes):
    both = tuple(BlendSource(prefix=f"{prefixes}/{name}") for name in "bc")
    datasets = build(DataConfig(train=f"{prefixes}/a", valid=both, seq_length=8))
    assert datasets.sources == ("b", "c")
    assert "source" not in datasets.train[0]
    count = datasets.valid.samples_per_epoch
    assert [int(datasets.valid[i]["source"]) for i in (0, count - 1)] == [0, 1]


def test_one_prefix_needs_no_source(prefixes):
    datasets = build(DataConfig(train=f"{prefixes}/a", seq_length=8))
    assert datasets.sources == () and "source" not in datasets.train[0]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a", "y/b"], ("a", "b")),
        (["x/a", "y/a", "b"], ("x/a", "y/a", "b")),
        (["k/x/a", "l/x/a", "x/b"], ("k/x/a", "l/x/a", "b")),
        (["x/a", "./x/a", "b"], ("a", "b")),
    ],
)
def test_names_of_sources_are_as_short_as_they_can_be(tmp_path, monkeypatch, paths, names):
    monkeypatch.chdir(tmp_path)
    for path in {path.removeprefix("./") for path in paths}:
        write_prefix(path, numbered_documents([20]))
    train = tuple(BlendSource(prefix=path) for path in paths)
    datasets = build(DataConfig(train=train, seq_length=8))
    assert datasets.sources == names
    assert {int(datasets.train[i]["source"]) for i in range(6)} == set(range(len(names)))


@pytest.fixture
def stages(tmp_path):
    write_prefix(tmp_path / "pretrain", [[*range(3, 20), 2]] * 4, eod_id=2)
    write_conversations(tmp_path / "sft", answered([9, 14, 30]))
    write_groups(tmp_path / "preference", [([1], [([2, 3], 0), ([4], 1)])])
    return tmp_path


STAGES = {"pretrain": PretrainDataset, "sft": SFTDataset, "preference": PreferenceDataset}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("data", STAGES)
def test_each_stage_reads_its_own_data_and_no_other(stages, data, stage):
    config = DataConfig(train=f"{stages}/{data}", seq_length=32)
    if data == stage:
        assert isinstance(build(config, stage=stage).train, STAGES[stage])
        return
    with pytest.raises(ConfigError, match=f"with --stage {data}, but this run trains on {stage}"):
        build(config, stage=stage)


def test_options_at_the_end_of_documents_change_samples(stages):
    config = {"train": f"{stages}/pretrain", "seq_length": 36}
    plain = build(DataConfig(**config)).train[0]
    reset = DataConfig(
        **config, reset_position_ids=True, reset_attention_at_eod=True, eod_mask_loss=True
    )
    sample = build(reset).train[0]
    assert "segment_ids" not in plain and plain["loss_mask"].all()
    assert sample["position_ids"].tolist() == [*range(18), *range(18)]
    assert sample["segment_ids"].tolist() == [0] * 18 + [1] * 18
    assert np.flatnonzero(sample["loss_mask"] == 0).tolist() == [17, 35]


def test_stock_files_end_documents_as_the_tokenizer_does(stages):
    (stages / "pretrain.meta.json").unlink()
    config = DataConfig(train=f"{stages}/pretrain", seq_length=36, reset_position_ids=True)
    assert build(config).train[0]["position_ids"].max() == 17


def test_documents_without_an_end_cannot_be_told_apart(prefixes):
    config = DataConfig(train=f"{prefixes}/a", seq_length=8, eod_mask_loss=True)
    with pytest.raises(ConfigError, match="--no-append-eod, so nothing tells where"):
        build(config)


@pytest.mark.parametrize(
    ("stage", "option", "message"),
    [
        ("sft", {"reset_position_ids": True}, "data.reset_position_ids is for pretraining"),
        ("sft", {"reset_attention_at_eod": True}, "reset_attention_at_eod is for pretraining"),
        ("preference", {"eod_mask_loss": True}, "samples of preference data are always apart"),
        ("pretrain", {"overlong": "drop"}, "data.overlong is drop, but documents of any length"),
    ],
)
def test_options_of_another_stage_are_refused(stages, stage, option, message):
    config = DataConfig(train=f"{stages}/{stage}", seq_length=32, **option)
    with pytest.raises(ConfigError, match=message):
        build(config, stage=stage)


def test_what_was_left_out_is_noted(stages):
    config = DataConfig(train=f"{stages}/sft", seq_length=14, overlong="drop")
    assert build(config, stage="sft").notes == (
        f"{stages}/sft: 1 of 3 conversations are longer than 14 tokens: 1 dropped",
    )


def test_every_option_that_changes_samples_is_part_of_the_order(stages):
    common = {"train": f"{stages}/pretrain", "seq_length": 36}
    options = ("reset_position_ids", "reset_attention_at_eod", "eod_mask_loss")
    orders = [build(DataConfig(**common, **{name: True})).order for name in options]
    orders.append(build(DataConfig(**common)).order)
    sft = {"train": f"{stages}/sft", "seq_length": 36}
    orders += [build(DataConfig(**sft, overlong=o), stage="sft").order for o in ("error", "drop")]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
