"""Heads of models whose config.json says that the embedding is the head."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_chimed.conversion import hf
from tests.integration.hf_folders import assert_same_bits, edit_weights, file_tensors, make_hf
from tests.integration.test_convert import logit_check


def test_a_tied_model_stays_tied(tmp_path):
    model = make_hf(tmp_path / "hf", tie_word_embeddings=True)
    assert "lm_head.weight" not in file_tensors(tmp_path / "hf")
    done = hf.import_hf(tmp_path / "hf", tmp_path / "ckpt", check=logit_check)
    assert done.num_parameters == model.num_parameters()
    hf.export_hf(tmp_path / "ckpt", tmp_path / "out", check=logit_check)
    assert_same_bits(file_tensors(tmp_path / "hf"), file_tensors(tmp_path / "out"))
    assert LlamaForCausalLM.from_pretrained(tmp_path / "out").config.tie_word_embeddings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_beside_tied_embeddings_is_taken_where_it_differs(tmp_path, dtype):
    make_hf(tmp_path / "hf", shard="5GB", dtype=dtype, tie_word_embeddings=True)
    key, embedding = "lm_head.weight", "model.embed_tokens.weight"
    for number, change in enumerate((0.0, 0.5)):
        # As a fine-tuning leaves it that trained the head: one number is enough.
        edit_weights(
            tmp_path / "hf",
            lambda t, change=change: t.update({key: t[embedding].clone().index_add_(
                0, torch.tensor([7]), torch.full((1, 32), change, dtype=dtype))}),
        )  # fmt: skip
        done = hf.import_hf(tmp_path / "hf", tmp_path / f"ckpt{number}", check=logit_check)
        assert any("lm_head.weight exists and differs" in n for n in done.notes) == bool(change)
        assert any("lm_head.weight is the embedding" in n for n in done.notes) != bool(change)
        hf.export_hf(tmp_path / f"ckpt{number}", tmp_path / f"out{number}", check=logit_check)
        expected = file_tensors(tmp_path / "hf")
        if not change:
            del expected[key]
        assert_same_bits(expected, file_tensors(tmp_path / f"out{number}"))
        config = LlamaConfig.from_pretrained(tmp_path / f"out{number}")
        assert config.tie_word_embeddings is not bool(change)
