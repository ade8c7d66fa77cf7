"""The whole model against transformers' with the same weights; its loss against torch's."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_chimed.conversion.hf_config import to_hf_config
from megatron_chimed.model import weight_shards
from tests.unit.engine.world import MODEL, one_rank, token_batch, token_losses, whole_model


def reference_of(model):
    """transformers' model with our weights, found by their names alone; norms and biases random."""
    config = to_hf_config(model.model_config, dtype=torch.float32, token_ids={})
    reference = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config), attn_implementation="eager", dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for shard in weight_shards([model]):
        if shard.tensor.ndim == 1:
            shard.tensor.add_(torch.rand(shard.tensor.shape, generator=generator) - 0.5)
        weights[shard.key] = shard.tensor.clone()
    if model.model_config.has_tied_head:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    reference.load_state_dict(weights, strict=True)
    return reference.eval()


CASES = {
    "grouped-query": {},
    "multi-head": {"num_key_value_heads": 8},
    "multi-query": {"num_key_value_heads": 1},
    "linear scaling": {"rope_scaling_factor": 2.0},
    "other base and eps": {"rope_theta": 500000.0, "rms_norm_eps": 1e-3},
    "reference attention": {"attention_backend": "reference"},
    "vocabulary without padding": {"vocab_size": 256},
    "one column of padding": {"vocab_size": 255},
    "Qwen2": {"qkv_bias": True, "rope_theta": 1e6},
    "Qwen3": {"qk_norm": True, "kv_channels": 16},
    "Qwen3, other eps": {"qk_norm": True, "rms_norm_eps": 0.1},
    "tied": {"tie_word_embeddings": True},
    "tied Qwen3, loss in chunks": {
        "qk_norm": True,
        "tie_word_embeddings": True,
        "loss_chunk_tokens": 13,
    },
    "narrow heads": {"kv_channels": 4},
    "Llama 3.1": {
        "rope_theta": 500000.0,
        "rope_scaling": "llama3",
        "rope_scaling_factor": 8.0,
        "rope_original_max_positions": 16,
    },
    "YaRN": {"rope_scaling": "yarn", "rope_scaling_factor": 4.0, "rope_original_max_positions": 16},
    "recomputed Qwen3": {"qk_norm": True, "recompute": "selective"},
}


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients_are_those_of_transformers(name):
    """Weights of 0.2 instead of 0.02 make logits of some units, in which a wrong detail shows."""
    tokens, positions, labels = token_batch(vocab_size=CASES[name].get("vocab_size", 256))
    with one_rank() as ranks:
        model = whole_model(ranks, init_std=0.2, **CASES[name])
        reference = reference_of(model)
        logits = model(tokens, positions).transpose(0, 1)  # [b, s, padded v]
        vocab_size = model.model_config.vocab_size
        expected = reference(tokens).logits
        assert expected.abs().max() > 2
        torch.testing.assert_close(logits[..., :vocab_size], expected, rtol=1e-4, atol=1e-4)
        assert (logits[..., vocab_size:] == float("-inf")).all()

        if model.model_config.chunk_tokens:
            losses = model(tokens, positions, labels=labels)  # [b, s]
        else:
            losses = token_losses(ranks, model(tokens, positions), labels)
        losses.sum().backward()
        F.cross_entropy(expected.flatten(0, 1), labels.flatten(), reduction="sum").backward()
        theirs = dict(reference.named_parameters())
        for parameter in model.parameters():
            parameter.data = parameter.grad  # the shards of the gradient are those of the weights
        for shard in weight_shards([model]):
            gradient = theirs[shard.key].grad
            error = (shard.tensor - gradient).norm() / gradient.norm()
            assert error < 1e-4, shard.key


def test_positions_are_those_given():
    """Packed samples start again at 0: rows are turned by their own positions."""
    tokens, positions, _ = token_batch((2, 16))
    positions = torch.stack([positions[0] % 7, positions[1] + 30])
    with one_rank() as ranks:
        model = whole_model(ranks, init_std=0.2)
        expected = reference_of(model)(tokens, position_ids=positions).logits
        found = model(tokens, positions).transpose(0, 1)[..., : MODEL.vocab_size]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_mask_hides_keys():
    tokens, positions, _ = token_batch((2, 16))
    causal = torch.ones(16, 16, dtype=torch.bool).tril()
    mask = (causal & (torch.arange(16) != 3)) | torch.eye(16, dtype=torch.bool)
    mask = mask.expand(2, 1, 16, 16)
    with one_rank() as ranks:
        model = whole_model(ranks, init_std=0.2)
        additive = torch.where(mask, 0.0, float("-inf"))
        expected = reference_of(model)(tokens, attention_mask=additive).logits
        found = model(tokens, positions, mask=mask).transpose(0, 1)[..., : MODEL.vocab_size]
        plain = model(tokens, positions).transpose(0, 1)[..., : MODEL.vocab_size]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - plain).abs().max() > 0.1


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_token_losses_are_torchs(precision):
    """In fp32 whatever the type of the logits, padding left out of the sum."""
    tokens, positions, labels = token_batch()
    with one_rank() as ranks:
        model = whole_model(ranks, init_std=0.2, precision=precision)
        logits = model(tokens, positions).detach()  # [s, b, padded v]
        true = logits[..., : MODEL.vocab_size].transpose(0, 1).float().clone()
        losses = token_losses(ranks, logits, labels)
    assert losses.dtype == torch.float32 and losses.shape == labels.shape
    expected = F.cross_entropy(true.flatten(0, 1), labels.flatten(), reduction="none")
    torch.testing.assert_close(losses.flatten(), expected, rtol=1e-5, atol=1e-5)


def test_padding_rows_get_no_gradient():
    tokens, positions, labels = token_batch()
    with one_rank() as ranks:
        model = whole_model(ranks)
        token_losses(ranks, model(tokens, positions), labels).sum().backward()
    for parameter in (model.embed_tokens.weight, model.lm_head.weight):
        assert parameter.grad.isfinite().all()
        assert parameter.grad[: MODEL.vocab_size].any()
        assert not parameter.grad[MODEL.vocab_size :].any()


def test_only_the_wanted_positions_are_scored():
    tokens, positions, _ = token_batch()
    ends = torch.tensor([5, 23])
    with one_rank() as ranks, torch.no_grad():
        model = whole_model(ranks)
        whole = model(tokens, positions)  # [s, b, padded v]
        few = model(tokens, positions, ends=ends)  # [1, b, padded v]
    assert few.shape == (1, 2, whole.shape[-1])
    expected = whole[ends, torch.arange(2)]
    torch.testing.assert_close(few[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["Qwen2", "Qwen3", "tied", "narrow heads", "Llama 3.1", "YaRN"])
def test_a_packed_sample_is_as_alone(name):
    tokens, _, labels = token_batch((1, 24))
    lengths = (10, 14)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    segments = torch.repeat_interleave(torch.tensor(lengths))[None]
    with one_rank() as ranks:
        model = whole_model(ranks, init_std=0.2, **CASES[name])
        logits = model(tokens, positions, segment_ids=segments)
        packed = logits.detach().clone()  # the loss writes its gradient over them
        token_losses(ranks, logits, labels).sum().backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        model.zero_grad()
        start = 0
        for length in lengths:
            part = slice(start, start + length)
            alone = model(tokens[:, part], positions[:, part])
            torch.testing.assert_close(packed[part], alone, rtol=1e-5, atol=1e-5)
            token_losses(ranks, alone, labels[:, part]).sum().backward()
            start += length
        for packed_gradient, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(packed_gradient, parameter.grad, rtol=1e-4, atol=1e-5)
