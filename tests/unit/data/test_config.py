"""From settings to data sets: parts, blends, and the tokenizer the data was made with."""

import jsonargparse
import pytest

from megatron_chimed.data.blend import BlendedDataset, ConcatenatedDataset
from megatron_chimed.data.config import BlendSource, DataConfig, build_datasets
from megatron_chimed.data.pretrain import PretrainDataset
from megatron_chimed.errors import ConfigError, DataError
from tests.unit.data.prefixes import IDENTITY, numbered_documents, write_prefix


@pytest.fixture
def prefixes(tmp_path):
    for name in "abc":
        write_prefix(tmp_path / name, numbered_documents([20] * 10))
    return tmp_path


def build(config, vocab_size=1000, identity=IDENTITY, seed=1):
    return build_datasets(config, vocab_size=vocab_size, tokenizer_identity=identity, seed=seed)


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
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=DataConfig)
    one = parser.instantiate(parser.parse_args(["--data.train", "a", "--data.split", "9,1"]))
    assert one.data == DataConfig(train="a", split="9,1")
    text = "{train: [{prefix: a, weight: 2}, {prefix: b}], valid: c, seq_length: 16}"
    two = parser.instantiate(parser.parse_args(["--data", text]))
    sources = (BlendSource(prefix="a", weight=2.0), BlendSource(prefix="b"))
    assert two.data == DataConfig(train=sources, valid="c", seq_length=16)
