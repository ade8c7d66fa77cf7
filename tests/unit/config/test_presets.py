"""The named models are the published ones; a preset fills the model section, all else wins."""

import dataclasses
import json
import math

import pytest
import yaml

from megatron_chimed.config.presets import PRESETS

# (vocabulary, h, layers, heads, kv heads, f, positions, eps): the models' own config.json files.
PUBLISHED = {
    "ziya_13b": (39424, 5120, 40, 40, 40, 13824, 2048, 1e-6),
    "ziya2_13b": (39410, 5120, 40, 40, 40, 13824, 4096, 1e-6),
    "chimed_gpt": (39424, 5120, 40, 40, 40, 13824, 4096, 1e-6),
    "llama2_7b": (32000, 4096, 32, 32, 32, 11008, 4096, 1e-5),
    "llama2_13b": (32000, 5120, 40, 40, 40, 13824, 4096, 1e-5),
    "llama3_8b": (128256, 4096, 32, 32, 8, 14336, 8192, 1e-5),
    "llama3_1_8b": (128256, 4096, 32, 32, 8, 14336, 131072, 1e-5),
    "qwen2_5_7b": (152064, 3584, 28, 28, 4, 18944, 131072, 1e-6),
    "qwen2_5_14b": (152064, 5120, 48, 40, 8, 13824, 131072, 1e-5),
    "qwen2_5_32b": (152064, 5120, 64, 40, 8, 27648, 131072, 1e-5),
    "qwen3_8b": (151936, 4096, 36, 32, 8, 12288, 40960, 1e-6),
    "qwen3_14b": (151936, 5120, 40, 40, 8, 17408, 40960, 1e-6),
}
# (base of RoPE, parameters in billions as published)
OTHERS = {
    "llama3_8b": (5e5, 8.03),
    "llama3_1_8b": (5e5, 8.03),
    "qwen2_5_7b": (1e6, 7.62),
    "qwen2_5_14b": (1e6, 14.77),
    "qwen2_5_32b": (1e6, 32.76),
    "qwen3_8b": (1e6, 8.19),
    "qwen3_14b": (1e6, 14.77),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name):
    model = PRESETS[name]()
    assert (
        model.vocab_size,
        model.hidden_size,
        model.num_layers,
        model.num_attention_heads,
        model.num_key_value_heads,
        model.ffn_hidden_size,
        model.max_position_embeddings,
        model.rms_norm_eps,
    ) == PUBLISHED[name]
    theta, billions = OTHERS.get(name, (10000.0, None))
    assert model.rope_theta == theta
    assert model.rope_scaling_factor == (8.0 if name == "llama3_1_8b" else 1.0)
    assert (model.attention_dropout, model.hidden_dropout) == (0.0, 0.0)
    assert model.qkv_bias == name.startswith("qwen2")
    assert model.qk_norm == name.startswith("qwen3")
    assert model.head_dim == 128 and not model.tie_word_embeddings
    if billions is not None:
        assert model.num_parameters / 1e9 == pytest.approx(billions, abs=0.006)


def test_there_are_no_others():
    assert set(PRESETS) == {*PUBLISHED, "tiny"}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_large_vocabularies_have_losses_in_chunks(name):
    """Small ones keep the bits of earlier versions."""
    model = PRESETS[name]().with_vocabulary(4000)
    assert model.chunk_tokens == (1024 if name in OTHERS else 0)
    assert dataclasses.replace(model, loss_chunk_tokens=0).chunk_tokens == 0


def test_tiny_is_as_large_as_it_says():
    model = PRESETS["tiny"]()
    assert model.vocab_size is None, "it is trained with anybody's tokenizer"
    count = model.with_vocabulary(4000).num_parameters - 2 * 4000 * model.hidden_size
    said = float(PRESETS["tiny"].__doc__.split(" M ")[0])
    assert count / 1e6 == pytest.approx(said, abs=0.05)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_runs_at_the_usual_sizes(name):
    """Heads and widths are whole at TP 8; at 2 for the tiny one, 4 for Qwen2.5-7B's 28 heads."""
    model = PRESETS[name]()
    whole = math.gcd(model.num_attention_heads, model.num_key_value_heads, model.ffn_hidden_size)
    assert whole % {"tiny": 2, "qwen2_5_7b": 4}.get(name, 8) == 0


@pytest.fixture
def model_of(tmp_path, monkeypatch, capsys):
    """The model section that a command line ends with, as the run's checkpoint would store it."""
    from tools import train

    def run(*flags, config=None):
        path = tmp_path / "run.yaml"
        least = {
            "output_dir": "o",
            "tokenizer": "t",
            "data": {"train": "p", "seq_length": 8},
            "training": {"train_steps": 1},
        }
        path.write_text(yaml.safe_dump({**least, **(config or {})}))
        seen = []

        def remember(run_config, **world):
            seen.append(run_config)
            return 0

        monkeypatch.setattr("megatron_chimed.run.run_training", remember)
        monkeypatch.setattr("megatron_chimed.run.plan_training", remember)
        code = train.main([*flags[:2], "--config", str(path), *flags[2:]])
        return seen[0].model if code == 0 else (code, capsys.readouterr().err)

    return run


def test_a_preset_fills_the_model(model_of):
    assert model_of("--preset", "ziya2_13b") == PRESETS["ziya2_13b"]()
    assert model_of("--preset", "tiny") == PRESETS["tiny"]()


def test_file_and_overrides_win_over_a_preset(model_of):
    config = {"model": {"num_layers": 4, "rms_norm_eps": 1e-5}}
    model = model_of("--preset", "tiny", "--model.num_layers", "2", config=config)
    assert (model.num_layers, model.rms_norm_eps, model.hidden_size) == (2, 1e-5, 192)


def test_a_preset_named_last_still_gives_way(model_of):
    model = model_of("--model.num_layers", "2", "--preset", "tiny")
    assert (model.num_layers, model.hidden_size) == (2, 192)


def test_an_unknown_preset_is_refused(model_of):
    code, told = model_of("--preset", "ziya_70b")
    assert code == 78
    assert "'ziya_70b'" in told and "ziya_13b" in told and told.count("\n") == 1


def test_presets_are_made_anew():
    assert PRESETS["tiny"]() == PRESETS["tiny"]()
    with pytest.raises(TypeError):
        PRESETS["mine"] = PRESETS["tiny"]
    assert json.dumps(vars(PRESETS["tiny"]()))
