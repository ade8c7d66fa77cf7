"""The templates that have a name, and which of them fit a tokenizer."""

from megatron_chimed.data.templates.chatml import ChatmlTemplate
from megatron_chimed.data.templates.family_template import FamilyTemplate
from megatron_chimed.data.templates.llama3 import Llama3Template
from megatron_chimed.data.templates.mistral import MistralTemplate
from megatron_chimed.data.templates.segment_template import SegmentTemplate
from megatron_chimed.data.templates.template import Template
from megatron_chimed.errors import ConfigError
from megatron_chimed.tokenizer import Tokenizer

# Without their colon they are still tokens, also in ChiMed-GPT's vocabulary.
ZIYA_TAGS = ("<human>:", "<bot>:", "<human>", "<bot>")

TEMPLATES: dict[str, SegmentTemplate] = {
    template.name: template
    for template in (
        # Fengshenbang's trainer concatenates turns without separator or begin of sequence; its
        # inference adds the latter.
        SegmentTemplate(name="ziya", prompt="<human>:{question}\n<bot>:", tags=ZIYA_TAGS),
        # Only the two tags are published; the rest follows `ziya`, the model's base.
        SegmentTemplate(
            name="chimed",
            prompt="[human]:{question}\n[bot]:",
            tags=("[human]:", "[bot]:", *ZIYA_TAGS),
        ),
        # Zhongjing's trainer: each turn starts with a begin of sequence, after a line break.
        SegmentTemplate(
            name="zhongjing",
            prompt="<human>:{question}\n<bot>:",
            separator="\n",
            system="{system}",
            bos="every",
            tags=ZIYA_TAGS,
        ),
    )
}
"""The published templates of sentencepiece models, by name."""

FAMILY_TEMPLATES: dict[str, FamilyTemplate] = {
    template.name: template
    for template in (
        ChatmlTemplate(
            name="chatml",
            default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        ),
        ChatmlTemplate(name="qwen3", thinking="on"),
        ChatmlTemplate(name="qwen3_nothink", thinking="off"),
        Llama3Template(name="llama3"),
        MistralTemplate(name="mistral"),
    )
}
"""The templates of base models, by name."""

ALL_TEMPLATES: dict[str, Template] = {**TEMPLATES, **FAMILY_TEMPLATES}

MOST_TOKENS_FIRST = ("llama3", "qwen3", "chatml", "mistral")
"""Qwen3's vocabulary has all tokens of Qwen2.5's."""


def template_for(tokenizer: Tokenizer) -> Template | None:
    """The template of the family that a tokenizer belongs to, by its special tokens; None: ours."""
    found = (FAMILY_TEMPLATES[name] for name in MOST_TOKENS_FIRST)
    return next((entry for entry in found if entry.unfit_reason(tokenizer) is None), None)


def names_for(tokenizer: Tokenizer) -> list[str]:
    """The names of all templates that fit a tokenizer."""
    return [name for name, entry in ALL_TEMPLATES.items() if not entry.unfit_reason(tokenizer)]


def no_template_reason(tokenizer: Tokenizer) -> str | None:
    """Why no template fits a tokenizer and what can be done, or None if there is one that does."""
    if names_for(tokenizer):
        return None
    families = ", ".join(
        f"{name} ({', '.join(entry.REQUIRED)})" for name, entry in FAMILY_TEMPLATES.items()
    )
    return (
        f"no chat template fits the tokenizer: it has the tokens of none of these: {families}. Add "
        "those of one to its tokenizer.json as special tokens, in ids for which the model has rows."
    )


def require_fit(template: Template, tokenizer: Tokenizer) -> None:
    """Refuses a template of another family than the tokenizer.

    Raises:
        ConfigError: It does not fit.
    """
    if reason := template.unfit_reason(tokenizer):
        names = " or ".join(names_for(tokenizer))
        advice = no_template_reason(tokenizer) or f"Give one that does: --template {names}."
        raise ConfigError(
            f"template {template.name!r} does not fit the tokenizer: {reason}. {advice}"
        )
