"""Folders of every family, verified with transformers; what no family has is refused by name."""

import itertools

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_chimed.checkpoint.reader import open_checkpoint
from megatron_chimed.conversion import families as table
from megatron_chimed.conversion import hf, hf_config
from megatron_chimed.data.templates import ALL_TEMPLATES
from megatron_chimed.errors import DataError
from tests.distributed import families
from tests.integration.commands import call
from tests.integration.hf_folders import assert_same_bits, edit_json, edit_weights, file_tensors
from tests.integration.test_convert import logit_check
from tests.integration.test_convert_reward import score_check
from tests.tiers import full_but

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
IN_TURN = list(zip(families.FAMILIES, itertools.cycle(DTYPES), strict=False))


@pytest.mark.parametrize(
    ("name", "precision"),
    full_but(IN_TURN, [(name, precision) for name in families.FAMILIES for precision in DTYPES]),
)
def test_a_language_model_comes_back_and_computes_the_same(tmp_path, name, precision):
    model = families.make(name, dtype=DTYPES[precision])
    model.save_pretrained(tmp_path / "hf")
    done = hf.import_hf(tmp_path / "hf", tmp_path / "ckpt", check=logit_check)
    assert done.num_parameters == model.num_parameters()
    assert open_checkpoint(tmp_path / "ckpt").config["model"]["kv_channels"] in (None, 16)
    hf.export_hf(tmp_path / "ckpt", tmp_path / "out", check=logit_check)
    assert_same_bits(file_tensors(tmp_path / "hf"), file_tensors(tmp_path / "out"))
    loaded = type(model).from_pretrained(tmp_path / "out").config.to_dict()
    # Written where they were left out, compared below, or of windows that are off.
    skipped = {"dtype", "transformers_version", "rope_parameters", "head_dim", "pretraining_tp"}
    skipped |= {"max_window_layers", *hf_config.TOKEN_ID_KEYS}
    for key, value in model.config.to_dict().items():
        if key not in skipped and not key.startswith("_"):
            assert loaded.get(key) == value, key
    theirs, ours = model.config.rope_parameters, loaded["rope_parameters"]
    assert {key: ours[key] for key in theirs} == theirs


@pytest.mark.parametrize("name", ["mistral", "qwen2 tied", "qwen3"])
def test_a_reward_model_comes_back_and_scores_alike(tmp_path, name):
    model = families.make(name, head="score")
    model.save_pretrained(tmp_path / "hf")
    hf.import_hf(tmp_path / "hf", tmp_path / "ckpt", check=score_check)
    hf.export_hf(tmp_path / "ckpt", tmp_path / "out", check=score_check)
    assert_same_bits(file_tensors(tmp_path / "hf"), file_tensors(tmp_path / "out"))
    assert type(model).from_pretrained(tmp_path / "out").config.architectures == [
        type(model).__name__
    ]


# Published config.json files: the architecture, then layers, width, heads, key heads, feed-forward,
# vocabulary and what else they say; parameters in billions.
PUBLISHED = {
    "Llama 2 7B": ("Llama", 32, 4096, 32, 32, 11008, 32000, {}, 6.738),
    "Llama 3.2 1B": (
        "Llama", 16, 2048, 32, 8, 8192, 128256,
        {"head_dim": 64, "tie_word_embeddings": True, "rope_theta": 5e5, "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}},
        1.236,
    ),
    "Yi 6B": ("Llama", 32, 4096, 32, 4, 11008, 64000, {"rope_theta": 5e6}, 6.061),
    "Yi 34B": ("Llama", 60, 7168, 56, 8, 20480, 64000, {"rope_theta": 5e6}, 34.389),
    "DeepSeek-LLM 7B": ("Llama", 30, 4096, 32, 32, 11008, 102400, {}, 6.910),
    "DeepSeek-LLM 67B": ("Llama", 95, 8192, 64, 8, 22016, 102400, {}, 67.425),
    "Mistral 7B v0.3": (
        "Mistral", 32, 4096, 32, 8, 14336, 32768, {"rope_theta": 1e6, "sliding_window": None}, 7.248
    ),
    "Mistral Nemo": (
        "Mistral", 40, 5120, 32, 8, 14336, 131072, {"head_dim": 128, "sliding_window": None}, 12.248
    ),
    "Qwen2.5 0.5B": (
        "Qwen2", 24, 896, 14, 2, 4864, 151936,
        {"tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": 32768}, 0.494,
    ),
    "Qwen3 0.6B": (
        "Qwen3", 28, 1024, 16, 8, 3072, 151936,
        {"head_dim": 128, "tie_word_embeddings": True}, 0.596,
    ),
    "Qwen3 32B": ("Qwen3", 64, 5120, 64, 8, 25600, 151936, {"head_dim": 128}, 32.762),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_read_whole_and_written_alike(name):
    """The weights are as many as published and as transformers makes; it is read back as it was."""
    kind, layers, width, heads, key_heads, ffn, vocab_size, more, billions = PUBLISHED[name]
    raw = {
        "architectures": [f"{kind}ForCausalLM"],
        "model_type": kind.lower(),
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "intermediate_size": ffn,
        "vocab_size": vocab_size,
        "max_position_embeddings": 4096,
        **more,
    }
    model, problems = hf_config.model_config_of(raw)
    assert problems == [] and model is not None
    assert model.num_parameters / 1e9 == pytest.approx(billions, abs=0.001)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**raw))
    assert {key: tuple(weight.shape) for key, weight in theirs.named_parameters()} == (
        hf_config.weight_shapes(model)
    )
    family = table.family_of(model, raw["model_type"])
    written = hf_config.to_hf_config(model, dtype=torch.bfloat16, token_ids={}, family=family)
    assert hf_config.model_config_of(written) == (model, [])
    assert written["architectures"] == raw["architectures"]


REFUSED = {
    "Qwen3.5": (
        {"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5"},
        "gated delta networks",
    ),
    "experts": ({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}, "experts"),
    "experts by a key": ({"num_experts": 8}, "mixtures of experts (num_experts is set)"),
    "Mixtral": ({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}, "experts"),
    "Baichuan": ({"architectures": ["BaichuanForCausalLM"], "model_type": "baichuan"}, "ALiBi"),
    "GLM": ({"architectures": ["Glm4ForCausalLM"], "model_type": "glm4"}, "part of each head"),
    "unknown": ({"architectures": ["NewForCausalLM"], "model_type": "new"}, "'new'"),
    "a window": ({"use_sliding_window": True}, "a window of the earlier tokens"),
    "some layers with a window": (
        {"layer_types": ["full_attention", "sliding_attention"]},
        "layer_types has sliding_attention; only full_attention",
    ),
    "part of a head": ({"partial_rotary_factor": 0.5}, "part of each head"),
    "biases": ({"attention_bias": True}, "the attention projections have biases"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_family_has_is_refused_by_name(name):
    changes, said = REFUSED[name]
    raw = families.make("qwen3").config.to_dict() | {"architectures": ["Qwen3ForCausalLM"]}
    model, problems = hf_config.model_config_of(raw | changes)
    assert model is None
    assert said in problems[0]
    if "architectures" in changes:
        for family in table.FAMILIES:
            assert f"{family.causal_lm} ({family.models})" in problems[0]


@pytest.mark.parametrize(
    ("window", "said"),
    [({}, "left out, which means 4096"), ({"sliding_window": 4096}, "sliding_window is 4096")],
)
def test_mistral_has_a_window_unless_its_config_says_null(window, said):
    raw = families.make("mistral").config.to_dict() | {"architectures": ["MistralForCausalLM"]}
    del raw["sliding_window"]
    model, (problem,) = hf_config.model_config_of(raw | window)
    assert model is None and said in problem
    model, problems = hf_config.model_config_of(raw | {"sliding_window": None})
    assert model is not None and not problems


def test_a_missing_width_of_heads_is_what_transformers_takes():
    raw = {**families.SIZES, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    model, problems = hf_config.model_config_of(raw)
    assert problems == [] and model is not None and model.head_dim == 128
    raw = {**families.SIZES, "architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    del raw["num_key_value_heads"]
    model, problems = hf_config.model_config_of(raw | {"sliding_window": None})
    assert model is not None and (model.head_dim, model.num_key_value_heads) == (8, 8)


def test_weights_that_would_be_lost_are_refused(tmp_path):
    """A bias that the architecture has no place for, and one that it should have."""
    for name, key, message in (
        ("llama", "model.layers.1.self_attn.q_proj.bias", "is not a weight of this model"),
        ("qwen2", "model.layers.1.self_attn.o_proj.bias", "is not a weight of this model"),
        ("qwen3", "model.layers.0.mlp.up_proj.bias", "is not a weight of this model"),
    ):
        folder = tmp_path / name
        families.make(name).save_pretrained(folder)
        edit_weights(folder, lambda tensors, key=key: tensors.update({key: torch.ones(64)}))
        with pytest.raises(DataError, match=f"{key} {message}"):
            hf.import_hf(folder, tmp_path / "ckpt")
    folder = tmp_path / "missing"
    families.make("qwen2").save_pretrained(folder)
    key = "model.layers.2.self_attn.k_proj.bias"
    edit_weights(folder, lambda tensors: tensors.pop(key))
    with pytest.raises(DataError, match=f"{key} is missing"):
        hf.import_hf(folder, tmp_path / "ckpt")


def test_the_command_refuses_with_65_and_writes_nothing(tmp_path):
    families.make("qwen2").save_pretrained(tmp_path / "hf")
    edit_json(tmp_path / "hf/config.json", use_sliding_window=True)
    words = ("import-hf", "--input", tmp_path / "hf", "--output", tmp_path / "ckpt")
    done = call("convert_checkpoint", *words)
    assert done.code == 65 and "use_sliding_window is set" in done.err
    assert not (tmp_path / "ckpt").exists()


def test_the_table_is_consistent():
    names = [name for f in table.FAMILIES for name in (f.model_type, f.causal_lm, f.scorer)]
    assert len(set(names)) == len(names)
    assert {name for family in table.FAMILIES for name in family.templates} <= set(ALL_TEMPLATES)
