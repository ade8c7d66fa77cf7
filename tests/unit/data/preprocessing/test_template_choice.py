"""Which template preprocessing takes, and where answers in it end in generation."""

import pytest

from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.data.preprocessing.plan import PreprocessConfig, make_plan
from megatron_chimed.data.templates import ALL_TEMPLATES
from megatron_chimed.errors import ConfigError
from megatron_chimed.generation.prompt_encoder import make_prompt_encoder
from megatron_chimed.tokenizer import load_tokenizer

ROW = '{"prompt": "头痛怎么办？", "completion": "多休息。"}\n'


def plan(folder, tokenizer, **options):
    path = folder / "rows.jsonl"
    path.write_text(ROW, encoding="utf-8")
    config = PreprocessConfig(
        inputs=(str(path),),
        tokenizer=str(tokenizer),
        output_prefix=str(folder / "out"),
        stage="sft",
        **options,
    )
    return make_plan(config)


def test_the_template_of_the_tokenizers_family_is_the_default(real_data, tmp_path):
    made = plan(tmp_path, real_data / "tokenizers/llama3")
    assert made.rendering.template == made.recipe.stage.template == "llama3"
    assert made.rendering.template_identity == ALL_TEMPLATES["llama3"].identity
    with pytest.raises(ConfigError, match="'qwen3' does not fit.*--template llama3"):
        plan(tmp_path, real_data / "tokenizers/llama3", template="qwen3")


def test_answers_end_where_the_template_says(real_data):
    tokenizer = load_tokenizer(real_data / "tokenizers/llama3")
    encoder = make_prompt_encoder(tokenizer, ALL_TEMPLATES["llama3"], None)
    sampling = encoder.with_stops(SamplingConfig(), (128001, 7))
    assert sampling.stop_token_ids == (128009, 128001, 7)
    raw = make_prompt_encoder(tokenizer, None, None)
    assert raw.with_stops(SamplingConfig(), (7,)).stop_token_ids == (7,)
    with pytest.raises(ConfigError, match="--template llama3"):
        make_prompt_encoder(tokenizer, ALL_TEMPLATES["ziya"], None)
