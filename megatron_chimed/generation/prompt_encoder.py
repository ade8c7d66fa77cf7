"""Encodes a model's input: with the chat template that it was trained with, or as plain text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.data.formats.example import Conversation
from megatron_chimed.data.templates import Template, encode_prompts, require_fit
from megatron_chimed.errors import ConfigError
from megatron_chimed.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TemplateChoice:
    """The chosen template and the reason; made before the model is loaded."""

    template: Template | None
    """None: plain text is completed."""

    why: str
    """One line for the user."""


@dataclass(frozen=True, kw_only=True)
class PromptEncoder:
    """Encodes conversations with a template, or texts without one."""

    tokenizer: Tokenizer
    """The model's tokenizer."""

    template: Template | None = None
    """None: plain text is completed."""

    add_bos: bool = False
    """Whether text starts with the beginning of sequence; templates define it themselves."""

    def encode(self, asked: Sequence[Conversation | str]) -> list[list[int]]:
        """Token ids up to where the answer, or the rest of the text, starts.

        Args:
            asked: Conversations whose last answers are "" with a template, texts without one.
        """
        if self.template is not None:
            conversations = [item for item in asked if isinstance(item, Conversation)]
            assert len(conversations) == len(asked), "a template encodes conversations"
            return encode_prompts(self.tokenizer, self.template, conversations)
        texts = [item for item in asked if isinstance(item, str)]
        assert len(texts) == len(asked), "conversations need a template"
        return [[*self.prefix, *ids] for ids in self.tokenizer.encode_batch(texts)]

    def with_stops(self, sampling: SamplingConfig, stop_ids: Sequence[int]) -> SamplingConfig:
        """The sampling that also ends where the template ends an answer, and at `stop_ids`."""
        own = () if self.template is None else self.template.stop_ids(self.tokenizer)
        return replace(sampling, stop_token_ids=tuple(dict.fromkeys((*own, *stop_ids))))

    @property
    def prefix(self) -> list[int]:
        """Ids before every text: the beginning of sequence, if it is added."""
        bos_id = self.tokenizer.bos_id
        return [bos_id] if self.add_bos and bos_id is not None else []


def choose_template(
    stored: Template | None, *, given: Template | None, raw: bool
) -> TemplateChoice:
    """Chooses between the stored template, the given one and none.

    Args:
        stored: The template that the model was trained with; None if the checkpoint names none.
        given: The template that the user named.
        raw: Whether the user asked for plain text completion.

    Raises:
        ConfigError: Both `given` and `raw`.
    """
    if raw and given is not None:
        raise ConfigError(
            "--raw completes text without any template, --template names one. Remove one of them."
        )
    trained_with = f"template {stored.name}, which the model was trained with" if stored else ""
    if raw:
        without = f", without {trained_with}" if stored else ""
        return TemplateChoice(template=None, why=f"--raw: text is completed{without}")
    if given is None:
        base = "the checkpoint names no chat template, as base models do not: text is completed"
        return TemplateChoice(template=stored, why=trained_with or base)
    why = f"template {given.name}, as --template says; "
    if stored is None:
        why += "the checkpoint names none"
    elif stored.identity == given.identity:
        why += "the model was trained with it"
    else:
        why += (
            f"it differs from {stored.name}, which the model was trained with (identity "
            f"{given.identity[:12]}, not {stored.identity[:12]}): the model has never seen it"
        )
    return TemplateChoice(template=given, why=why)


def make_prompt_encoder(
    tokenizer: Tokenizer, template: Template | None, add_bos: bool | None
) -> PromptEncoder:
    """The encoder for a model.

    Args:
        tokenizer: The model's tokenizer.
        template: From `choose_template`.
        add_bos: Whether text starts with the beginning of sequence; None: the tokenizer's default.

    Raises:
        ConfigError: `add_bos` is given with a template, the template is of another family than the
            tokenizer, or the tokenizer has no such token.
    """
    if template is not None:
        if add_bos is not None:
            raise ConfigError(
                f"--{'' if add_bos else 'no-'}add-bos is for text that is completed (--raw): "
                f"template {template.name} defines how a prompt starts. Remove it."
            )
        require_fit(template, tokenizer)
        return PromptEncoder(tokenizer=tokenizer, template=template)
    if add_bos is None:
        add_bos = tokenizer.special.add_bos
    if add_bos and tokenizer.bos_id is None:
        raise ConfigError(
            "--add-bos: this tokenizer has no begin of sequence. Leave the flag out, or give "
            "--no-add-bos."
        )
    return PromptEncoder(tokenizer=tokenizer, add_bos=add_bos)
