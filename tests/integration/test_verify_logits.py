"""Sound conversions pass whatever their logits are, and those with a fault do not."""

import functools

import pytest
import torch
from transformers import LlamaForCausalLM

from megatron_chimed.checkpoint.reader import CheckpointReader
from megatron_chimed.conversion import hf, hf_verify
from megatron_chimed.conversion.hf_reference import in_float64
from megatron_chimed.conversion.hf_verify import checkpoint_logits, verify_logits
from megatron_chimed.errors import CheckpointError
from tests.integration.hf_folders import edit_weights, make_hf
from tests.integration.test_convert_reward import make_scorer

DEEP = {"num_hidden_layers": 40, "initializer_range": 0.3, "max_position_embeddings": 64}
LARGE = {"num_hidden_layers": 4}


class Changed(CheckpointReader):
    """A checkpoint of which a tensor is read otherwise, or a setting."""

    def __init__(self, directory, change=lambda key, tensor: tensor, **settings):
        super().__init__(directory)
        self.change = change
        self.config = self.config | {"model": self.config["model"] | settings}

    def read_region(self, key, offset, out):
        whole = torch.empty(self.tensors[key].shape)
        super().read_region(key, (0,) * whole.ndim, whole)
        whole = self.change(key, whole)
        out.copy_(whole[tuple(slice(s, s + n) for s, n in zip(offset, out.shape, strict=True))])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """40 layers, and one whose logits are hundreds, and a reward model whose scores are."""
    folder = tmp_path_factory.mktemp("verify")
    make_hf(folder / "deep", shard="5GB", **DEEP)
    make_hf(folder / "large", shard="5GB", **LARGE)
    make_scorer(folder / "scores", **LARGE)
    edit_weights(folder / "large", lambda tensors: tensors["lm_head.weight"].mul_(100))
    edit_weights(folder / "scores", lambda tensors: tensors["score.weight"].mul_(1000))
    for name in ("deep", "large", "scores"):
        hf.import_hf(folder / name, folder / f"{name}-ckpt")
    return folder


@pytest.fixture(autouse=True)
def known_references(monkeypatch):
    """The same folders are looked at again and again."""
    monkeypatch.setattr(hf_verify, "reference_logits", known_reference)


known_reference = functools.cache(hf_verify.reference_logits)


def verify(models, name, *change, **settings):
    reader = Changed(models / f"{name}-ckpt/iter_0000000", *change, **settings)
    return verify_logits(lambda tokens: checkpoint_logits(reader, tokens), models / name)


@pytest.mark.parametrize(("name", "kind"), [("deep", "l"), ("large", "l"), ("scores", "s")])
def test_a_sound_model_passes(models, name, kind):
    found = verify(models, name)
    assert found.kind[0] == kind
    assert found.our_error < 3 * found.their_error
    assert found.our_error > 1e-5, "an absolute tolerance for smaller models would refuse it"
    if name != "deep":
        assert found.max_logit > 100


def swap_heads(key, tensor):
    if not key.endswith("layers.2.self_attn.q_proj.weight"):
        return tensor
    return torch.cat((tensor[8:16], tensor[:8], tensor[16:]))


def transposed(key, tensor):
    return tensor.t() if key.endswith("layers.1.self_attn.o_proj.weight") else tensor


def next_row(key, tensor):
    return tensor.roll(1, dims=0) if key == "lm_head.weight" else tensor


def two_rows_of_the_head(key, tensor):
    return tensor[[1, 0, *range(2, 300)]] if key == "lm_head.weight" else tensor


def larger(key, tensor):
    return tensor * 1.001 if key.endswith("layers.3.mlp.up_proj.weight") else tensor


def bf16(key, tensor):
    return tensor.bfloat16().float() if key.endswith("layers.0.mlp.down_proj.weight") else tensor


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("deep", swap_heads),
        ("deep", bf16),
        ("large", swap_heads),
        ("large", transposed),
        ("large", next_row),
        ("large", two_rows_of_the_head),
        ("large", larger),
        ("large", bf16),
    ],
)
def test_a_wrong_tensor_is_found(models, name, change):
    with pytest.raises(CheckpointError, match="differ from ours by .* what rounding explains"):
        verify(models, name, change)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("deep", {"rms_norm_eps": 1e-5}),
        *(
            (name, settings)
            for name in ("large", "scores")
            for settings in (
                {"rms_norm_eps": 1e-5},
                {"rope_theta": 10_010.0},
                {"rope_scaling_factor": 1.001},
            )
        ),
    ],
)
def test_a_wrong_setting_is_found(models, name, settings):
    with pytest.raises(CheckpointError, match="differ from ours by"):
        verify(models, name, **settings)


def test_the_reference_is_float64_throughout_and_leaves_the_model_as_it_was(models):
    model = LlamaForCausalLM.from_pretrained(models / "large", dtype=torch.float32)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    tokens = torch.randint(300, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        with in_float64(model):
            exact = model(tokens).logits
            again = model(tokens).logits
        after = model(tokens).logits
    assert exact.dtype is torch.float64 and torch.equal(exact, again)
    assert after.dtype is torch.float32
    for key, tensor in model.state_dict().items():
        assert tensor.dtype is torch.float32 and torch.equal(tensor, before[key]), key
    # An independent formula: RMSNorm, RoPE and SwiGLU written out, in float64.
    assert (plain(before, tokens[0]) - exact[0]).abs().max() < 1e-9 * exact.abs().max()


def plain(weights, tokens):
    w = {key.removeprefix("model."): tensor.double() for key, tensor in weights.items()}
    norm = lambda x, name: x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * w[name]  # noqa: E731
    inverse = 10000.0 ** -(torch.arange(0, 8, 2, dtype=torch.float32) / 8)
    angles = torch.arange(len(tokens))[:, None] * inverse.double()
    cos, sin = angles.cos(), angles.sin()
    mask = torch.full((len(tokens), len(tokens)), -torch.inf).triu(1).double()

    def heads(x, name):
        x = (x @ w[f"{name}.weight"].t()).view(len(tokens), -1, 8).transpose(0, 1)
        return x.repeat_interleave(4 // len(x), dim=0)

    def turn(x):
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    x = w["embed_tokens.weight"][tokens]
    for n in range(4):
        at = f"layers.{n}.self_attn"
        y = norm(x, f"layers.{n}.input_layernorm.weight")
        q, k, v = (heads(y, f"{at}.{part}_proj") for part in "qkv")
        scores = turn(q) @ turn(k).transpose(1, 2) / 8**0.5 + mask
        y = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(tokens), -1)
        x = x + y @ w[f"{at}.o_proj.weight"].t()
        y = norm(x, f"layers.{n}.post_attention_layernorm.weight")
        gate, up, down = (
            w[f"layers.{n}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down")
        )
        x = x + (torch.nn.functional.silu(y @ gate.t()) * (y @ up.t())) @ down.t()
    return norm(x, "norm.weight") @ w["lm_head.weight"].t()
