"""A byte-level tokenizer travels with the weights, file by file, and every stop id with it."""

import json

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM, Qwen3ForCausalLM

from megatron_chimed.checkpoint.reader import CheckpointReader
from megatron_chimed.conversion import hf
from megatron_chimed.conversion.hf_generation import stop_ids
from megatron_chimed.errors import DataError
from megatron_chimed.tokenizer import load_tokenizer
from tests.distributed import families
from tests.integration.hf_folders import make_hf
from tests.unit.tokenizer.byte_bpe import UNICODE, toy_json, write_folder

STOPS = [402, 405]


def test_files_and_stop_ids_survive_the_round_trip(tmp_path):
    make_hf(tmp_path / "hf", shard="5GB", vocab_size=410)
    folder = write_folder(tmp_path / "hf", generation_config={"eos_token_id": STOPS})
    done = hf.import_hf(folder, tmp_path / "ckpt")
    assert done.notes == ()
    reader = CheckpointReader(done.output)
    assert reader.tokenizer_folder is not None
    stored = load_tokenizer(reader.tokenizer_folder)
    assert reader.state["tokenizer_identity"] == stored.identity
    assert stop_ids(reader.config, stored.stop_ids) == (402, 405, 400)
    hf.export_hf(tmp_path / "ckpt", tmp_path / "out")
    for place in (reader.tokenizer_folder, tmp_path / "out"):
        assert (place / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs(list(UNICODE))["input_ids"] == stored.encode_batch(UNICODE)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (402, 403)
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["eos_token_id"] == [402, 405, 400]


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        (Qwen3ForCausalLM, "chat models of its family use template 'qwen3'"),
        (LlamaForCausalLM, "its chat template is not one of ours: an export will not have it"),
    ],
)
def test_import_says_which_template_the_chat_models_of_the_family_use(tmp_path, kind, note):
    config = kind.config_class(**families.SIZES | {"vocab_size": 410})
    kind(config).save_pretrained(tmp_path / "hf")
    folder = write_folder(tmp_path / "hf", generation_config=None)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert note in hf.import_hf(folder, tmp_path / "ckpt").notes


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(tmp_path):
    make_hf(tmp_path / "hf", vocab_size=405)
    write_folder(tmp_path / "hf", generation_config=None)
    with pytest.raises(DataError, match="has 406 ids, the model embeds only 405"):
        hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")
    write_folder(tmp_path / "hf", toy_json(type="WordPiece"))
    with pytest.raises(DataError, match="holds a model of type 'WordPiece'; known are"):
        hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")
    (tmp_path / "hf/tokenizer.json").unlink()
    for name in ("merges.txt", "qwen.tiktoken", "vocab.json"):
        (tmp_path / "hf" / name).write_text("{}")
    said = "tokenizer in qwen.tiktoken, vocab.json, merges.txt, which is not read; known are.*only"
    with pytest.raises(DataError, match=said):
        hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")
    assert not (tmp_path / "ckpt").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_a_clone_without_its_large_files_is_told_so(tmp_path, name):
    make_hf(tmp_path / "hf", shard="5GB", vocab_size=410)
    folder = write_folder(tmp_path / "hf")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    (folder / name).write_text(pointer)
    (folder / "pytorch_model.bin").write_text(pointer)  # a second copy, which nothing reads
    said = f"has pointers of Git LFS in place of {name}: .*git lfs pull"
    with pytest.raises(DataError, match=said):
        hf.import_hf(folder, tmp_path / "ckpt")


def test_a_download_that_was_cut_off_is_one_problem(tmp_path):
    make_hf(tmp_path / "hf", shard="5GB")
    path = tmp_path / "hf/model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"1 problems:\n- .*and the whole model with it$"):
        hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")
