"""Reward models of transformers' own making, in and out."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from megatron_chimed.conversion import hf
from megatron_chimed.conversion.hf_verify import checkpoint_logits, verify_logits
from megatron_chimed.errors import CheckpointError, DataError
from tests.integration.hf_folders import (
    SIZES,
    assert_same_bits,
    edit_json,
    edit_weights,
    file_tensors,
)


def score_check(reader, folder):
    found = verify_logits(lambda tokens: checkpoint_logits(reader, tokens), folder)
    assert found.kind == "scores"


def make_scorer(folder, **changes):
    torch.manual_seed(0)
    config = LlamaConfig(**{**SIZES, "num_labels": 1, "pad_token_id": 0, **changes})
    model = LlamaForSequenceClassification(config)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "changes",
    [{}, {"pad_token_id": 7}, {"pad_token_id": None}, {"tie_word_embeddings": True}],
)
def test_round_trip_is_bit_equal_and_scores_alike(tmp_path, changes):
    model = make_scorer(tmp_path / "hf", **changes)
    done = hf.import_hf(tmp_path / "hf", tmp_path / "ckpt", check=score_check)
    assert done.num_parameters == model.num_parameters()
    done = hf.export_hf(tmp_path / "ckpt", tmp_path / "out", check=score_check)
    assert_same_bits(file_tensors(tmp_path / "hf"), file_tensors(tmp_path / "out"))
    loaded, problems = LlamaForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(problems.values())
    assert loaded.config.num_labels == 1
    assert loaded.config.pad_token_id == changes.get("pad_token_id", 0)
    is_warned = any("the padding id is unknown" in note for note in done.notes)
    assert is_warned == (loaded.config.pad_token_id is None)
    assert not (tmp_path / "out/generation_config.json").exists()


@pytest.mark.parametrize("labels", [2, 3])
def test_a_classifier_is_refused(tmp_path, labels):
    make_scorer(tmp_path / "hf", num_labels=labels)
    with pytest.raises(DataError, match=f"it has {labels} labels: a classifier, not a reward"):
        hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")


def test_a_language_model_that_says_it_is_a_scorer_is_refused(tmp_path):
    make_scorer(tmp_path / "hf")
    edit_json(tmp_path / "hf/config.json", architectures=["LlamaForCausalLM"])
    with pytest.raises(DataError, match="lm_head.weight is missing") as caught:
        hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")
    assert "score.weight is not a weight of this model" in str(caught.value)


def test_a_score_read_at_padding_or_by_another_head_is_caught(tmp_path):
    make_scorer(tmp_path / "hf")
    hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")
    edit_json(tmp_path / "hf/config.json", pad_token_id=1)

    def wrong_token(reader, folder):
        ours = lambda tokens: checkpoint_logits(reader, tokens).roll(1, dims=1)  # noqa: E731
        verify_logits(ours, folder)

    with pytest.raises(CheckpointError, match="transformers' scores of .* differ from ours by"):
        hf.export_hf(tmp_path / "ckpt", tmp_path / "out", check=wrong_token)
    assert not (tmp_path / "out").exists()
    edit_weights(tmp_path / "hf", lambda tensors: tensors["score.weight"].mul_(1.001))
    checkpoint = hf.open_checkpoint(tmp_path / "ckpt")
    with pytest.raises(CheckpointError, match="transformers' scores of"):
        score_check(checkpoint, tmp_path / "hf")
