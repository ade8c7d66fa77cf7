"""The FLOP formula against the published figure and against torch's own count of a LLaMA."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_chimed.observe.flops import model_flops_per_token


def test_ziya_13b_at_4096_costs_82_gflop_per_token():
    layer = 4 * 5120**2 + 3 * 5120 * 13824
    flops = model_flops_per_token(
        num_parameters=40 * layer + 2 * 39424 * 5120,
        vocab_size=39424,
        hidden_size=5120,
        num_layers=40,
        sequence_length=4096,
    )
    assert flops / 1e9 == pytest.approx(82.4, abs=0.05)


@pytest.mark.parametrize("num_key_value_heads", [4, 2])
def test_formula_equals_torchs_count_of_transformers_llama(num_key_value_heads):
    """torch counts the full attention square, the formula half of it."""
    batch_size, sequence_length = 2, 64
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=num_key_value_heads,
        attn_implementation="eager",
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    tokens = torch.zeros(batch_size, sequence_length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens).logits.sum().backward()
    half_square = 6 * config.num_hidden_layers * config.hidden_size * sequence_length

    matrices = sum(weight.numel() for weight in model.parameters() if weight.ndim > 1)
    flops = model_flops_per_token(
        num_parameters=matrices,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        sequence_length=sequence_length,
    )
    counted = counter.get_total_flops() / (batch_size * sequence_length)
    # transformers makes its RoPE angles by a tiny matrix product that the formula leaves out.
    assert flops + half_square == pytest.approx(counted, rel=1e-4)
