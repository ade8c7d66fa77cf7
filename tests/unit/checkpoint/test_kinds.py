"""A model of another kind is recognised where a checkpoint is meant, and the other way round."""

import pytest

from megatron_chimed.checkpoint.reader import newest_checkpoint, open_checkpoint
from megatron_chimed.conversion.hf import import_hf
from megatron_chimed.errors import CheckpointError, ConfigError, DataError
from megatron_chimed.tokenizer import load_tokenizer


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("open_it", [open_checkpoint, newest_checkpoint])
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model-00001-of-00002.bin"])
def test_a_hugging_face_folder_names_the_command_that_takes_it(tmp_path, open_it, weights):
    folder = touch(tmp_path / "hf", "config.json", weights)
    with pytest.raises(CheckpointError) as caught:
        open_it(folder)
    command = f"tools/convert_checkpoint.py import-hf --input {folder} --output {folder}_imported"
    assert "is a Hugging Face folder, not a checkpoint" in str(caught.value)
    assert str(caught.value).endswith(command)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adapter_config.json", "holds adapters of peft"),
        ("latest_checkpointed_iteration.txt", "is a checkpoint of Megatron-LM"),
        ("common.pt", "is a checkpoint of Megatron-LM"),
        ("unknown", "holds no checkpoint"),
    ],
)
def test_other_models_are_told_apart(tmp_path, name, message):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(touch(tmp_path / "other", name))


@pytest.mark.parametrize("inside", ["", "iter_0000003", "checkpoints/iter_0000003"])
def test_a_checkpoint_is_no_hugging_face_folder_and_no_tokenizer(tmp_path, inside):
    folder = tmp_path / "run"
    touch(folder / inside, "manifest.json", "index.json", "tokenizer/tokenizer.model")
    with pytest.raises(DataError) as caught:
        import_hf(folder, tmp_path / "out")
    command = f"tools/convert_checkpoint.py export-hf --checkpoint {folder} --output {folder}_hf"
    assert str(caught.value).endswith(command)
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(folder)
    assert str(caught.value).endswith(f"Give the one inside it: {folder / inside}/tokenizer.")
