"""The FLOP formula against the published figure and against torch's own count of a LLaMA."""

import peft
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


def make_llama(num_key_value_heads, **changes):
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=num_key_value_heads,
        attn_implementation="eager",
        use_cache=False,
        **changes,
    )
    return LlamaForCausalLM(config)


def counted_by_torch(model, *, sequence_length):
    """FLOPs per token of forward and backward; the full attention square."""
    tokens = torch.zeros(2, sequence_length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens).logits.sum().backward()
    return counter.get_total_flops() / tokens.numel()


def counted_by_us(model, *, sequence_length, num_frozen=0):
    """The same; the formula has half of the attention square."""
    config = model.config
    flops = model_flops_per_token(
        num_parameters=sum(weight.numel() for weight in model.parameters() if weight.ndim > 1),
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        sequence_length=sequence_length,
        attention_width=config.num_attention_heads * config.head_dim,
        num_frozen=num_frozen,
    )
    width = config.num_attention_heads * config.head_dim
    return flops + 6 * config.num_hidden_layers * width * sequence_length


@pytest.mark.parametrize(("num_key_value_heads", "head_dim"), [(4, 16), (2, 16), (2, 40), (4, 8)])
def test_formula_equals_torchs_count_of_transformers_llama(num_key_value_heads, head_dim):
    """Heads together may be wider than the hidden size, or narrower."""
    model = make_llama(num_key_value_heads, head_dim=head_dim)
    counted = counted_by_torch(model, sequence_length=64)
    # transformers makes its RoPE angles by a tiny matrix product that the formula leaves out.
    assert counted_by_us(model, sequence_length=64) == pytest.approx(counted, rel=1e-4)


def test_formula_equals_torchs_count_of_adapters_by_peft():
    """Frozen weights have no gradients of their own, but let those of their inputs through."""
    lora = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(make_llama(2), lora)
    model.enable_input_require_grads()  # as ours: of the first layer's inputs, too
    frozen = sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if weight.ndim > 1 and not weight.requires_grad and "embed_tokens" not in name
    )
    counted = counted_by_torch(model, sequence_length=64)
    ours = counted_by_us(model, sequence_length=64, num_frozen=frozen)
    assert ours == pytest.approx(counted, rel=1e-4)
