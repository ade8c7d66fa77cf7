"""A tokenizer from a file or a folder, and folders that contradict themselves."""

import json
import re

import pytest

from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.tokenizer import SentencePieceTokenizer, load_tokenizer
from tests.unit.tokenizer.samples import train_model

MODEL = train_model()
SIZE = SentencePieceTokenizer(MODEL).model_size
ADDED = {"<human>": SIZE, "<bot>": SIZE + 1}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    return tmp_path


def write(folder, name, value):
    (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")


def test_a_file_of_any_name_and_a_folder_load_the_same(folder):
    (folder / "other.model").write_bytes(MODEL)
    assert load_tokenizer(folder).identity == load_tokenizer(folder / "other.model").identity


def test_added_tokens_may_stand_in_any_of_three_files(folder):
    expected = SentencePieceTokenizer(MODEL, ADDED).identity
    write(folder, "added_tokens", {"<human>": SIZE})
    write(folder, "tokenizer_config", {"added_tokens_decoder": {SIZE + 1: {"content": "<bot>"}}})
    assert load_tokenizer(folder).identity == expected
    write(folder, "added_tokens", {})
    write(folder, "tokenizer", {"added_tokens": [{"id": SIZE, "content": "<human>"}]})
    assert load_tokenizer(folder).identity == expected


def test_control_tokens_in_added_tokens_stay_unrecognised_in_text(folder):
    """As in ChiMed-GPT's own file."""
    write(folder, "added_tokens", {"<unk>": 0, "<s>": 1, "</s>": 2, **ADDED})
    tokenizer = load_tokenizer(folder)
    assert tokenizer.added_tokens == ADDED
    assert 2 not in tokenizer.encode("</s>")


def test_special_tokens_are_taken_from_the_folder(folder):
    write(folder, "added_tokens", {"<pad>": SIZE, "<end>": SIZE + 1})
    write(folder, "special_tokens_map", {"pad_token": "<pad>", "eos_token": {"content": "<end>"}})
    write(folder, "tokenizer_config", {"eos_token": "<end>", "add_bos_token": False})
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, SIZE + 1, SIZE)
    assert tokenizer.decode([*tokenizer.encode("发热"), SIZE + 1, SIZE]) == "发热"
    assert not tokenizer.special.add_bos
    assert load_tokenizer(folder / "tokenizer.model").special.add_bos


def test_null_special_tokens_mean_the_models_own(folder):
    write(folder, "special_tokens_map", {"pad_token": None})
    write(folder, "tokenizer_config", {"pad_token": None, "unk_token": None})
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.pad_id, tokenizer.unk_id) == (None, 0)


def test_two_ids_for_one_token_are_refused_with_both_files(folder):
    write(folder, "added_tokens", ADDED)
    write(folder, "tokenizer_config", {"added_tokens_decoder": {SIZE + 2: {"content": "<bot>"}}})
    message = (
        rf"'<bot>' has id {SIZE + 1} in added_tokens.json and {SIZE + 2} in tokenizer_config.json"
    )
    with pytest.raises(ConfigError, match=message):
        load_tokenizer(folder)


def test_two_tokens_for_one_id_are_refused_with_both_texts(folder):
    write(folder, "added_tokens", {"<human>": SIZE})
    write(folder, "tokenizer", {"added_tokens": [{"id": SIZE, "content": "<user>"}]})
    with pytest.raises(ConfigError, match=rf"id {SIZE} is '<human>' in .* and '<user>' in"):
        load_tokenizer(folder)


def test_added_tokens_of_another_model_are_refused(folder):
    write(folder, "added_tokens", {"<human>": 39408, "<bot>": 39409})
    with pytest.raises(ConfigError, match=r"\[39408, 39409\], but they must follow the model's"):
        load_tokenizer(folder)


def test_an_unknown_special_token_is_refused(folder):
    write(folder, "special_tokens_map", {"pad_token": "[PAD]"})
    with pytest.raises(ConfigError, match=r"pad_token '\[PAD\]' is neither a piece"):
        load_tokenizer(folder)


def test_two_files_that_name_different_ends_are_refused(folder):
    write(folder, "special_tokens_map", {"eos_token": "</s>"})
    write(folder, "tokenizer_config", {"eos_token": "<s>"})
    with pytest.raises(ConfigError, match="eos_token is '<s>' in tokenizer_config.json and '</s>'"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not valid JSON"), ("[]", "holds a list, not a JSON object"), ("\xff", "not valid")],
)
def test_malformed_files_are_named(folder, content, message):
    (folder / "added_tokens.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=f"added_tokens.json.*{message}"):
        load_tokenizer(folder)


@pytest.mark.parametrize("index", [True, "7", None, 1.5])
def test_an_added_token_whose_id_is_no_integer_is_refused(folder, index):
    write(folder, "added_tokens", {"<human>": index})
    with pytest.raises(DataError, match="added token '<human>' with id"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokenizer_config", {"added_tokens_decoder": [1]}),
        ("tokenizer_config", {"added_tokens_decoder": {"x": {"content": "<a>"}}}),
        ("tokenizer_config", {"eos_token": 5}),
        ("special_tokens_map", {"eos_token": {"content": ["</s>"]}}),
        ("tokenizer", {"added_tokens": ["<a>"]}),
        ("tokenizer", {"added_tokens": [{"content": "<a>"}]}),
    ],
)
def test_values_of_a_wrong_type_are_our_errors(folder, name, value):
    write(folder, name, value)
    with pytest.raises((ConfigError, DataError), match=re.escape(str(folder))):
        load_tokenizer(folder)


def test_missing_paths_are_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.*does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="holds no tokenizer.model and no tokenizer.json"):
        load_tokenizer(tmp_path)


def test_a_model_without_an_end_token_is_refused():
    from sentencepiece import sentencepiece_model_pb2 as pb2

    model = pb2.ModelProto.FromString(MODEL)
    model.trainer_spec.eos_id = -1
    model.pieces[2].piece = "<other>"
    with pytest.raises(ConfigError, match="no end-of-sequence piece"):
        SentencePieceTokenizer(model.SerializeToString())
