"""How a model is spoken to: in the chat template that it was trained with, or by plain text."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_chimed.data.formats.example import Conversation
from megatron_chimed.data.templates import Template, encode_prompts
from megatron_chimed.errors import ConfigError
from megatron_chimed.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Manner:
    """Whether there is a template, and why: decided before the model is there."""

    template: Template | None
    """None: text is completed."""

    why: str
    """One line for the user."""


@dataclass(frozen=True, kw_only=True)
class Framing:
    """Makes token ids of what a model is asked."""

    tokenizer: Tokenizer
    """The model's."""

    template: Template | None = None
    """None: text is completed."""

    add_bos: bool = False
    """Whether text starts with the begin of sequence; templates say so themselves."""

    def encode(self, asked: Sequence[Conversation | str]) -> list[list[int]]:
        """Ids up to where the answer, or the rest of the text, starts.

        Args:
            asked: Conversations whose last answers are "", or texts where there is no template.
        """
        if self.template is not None:
            return encode_prompts(self.tokenizer, self.template, asked)
        first = [self.tokenizer.bos_id] if self.add_bos else []
        return [[*first, *ids] for ids in self.tokenizer.encode_batch(list(asked))]


def choose_manner(stored: Template | None, *, given: Template | None, raw: bool) -> Manner:
    """How the model of a checkpoint is spoken to.

    Args:
        stored: The template that it was trained with; None: it does not say.
        given: The template that the user wants.
        raw: The user wants text to be completed.

    Raises:
        ConfigError: The user wants both.
    """
    if raw and given is not None:
        raise ConfigError(
            "--raw completes text without any template, --template names one. Remove one of them."
        )
    if raw:
        without = f", without template {stored.name}, which the model was trained with"
        return Manner(template=None, why=f"--raw: text is completed{without if stored else ''}")
    if given is None and stored is None:
        why = "the checkpoint names no chat template, as base models do not: text is completed"
        return Manner(template=None, why=why)
    if given is None:
        return Manner(
            template=stored, why=f"template {stored.name}, which the model was trained with"
        )
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
    return Manner(template=given, why=why)


def make_framing(tokenizer: Tokenizer, template: Template | None, add_bos: bool | None) -> Framing:
    """The framing of a model.

    Args:
        tokenizer: The model's.
        template: From `choose_manner`.
        add_bos: Whether text starts with the begin of sequence; None: what the tokenizer says.

    Raises:
        ConfigError: The template says so itself, or the tokenizer has no begin of sequence.
    """
    if template is not None:
        if add_bos is not None:
            raise ConfigError(
                f"--{'' if add_bos else 'no-'}add-bos is for text that is completed (--raw): "
                f"template {template.name} says itself what a prompt begins with. Remove it."
            )
        return Framing(tokenizer=tokenizer, template=template)
    if add_bos is None:
        add_bos = tokenizer.special.add_bos
    if add_bos and tokenizer.bos_id is None:
        raise ConfigError(
            "--add-bos: this tokenizer has no begin of sequence. Leave the flag out, or give "
            "--no-add-bos."
        )
    return Framing(tokenizer=tokenizer, add_bos=add_bos)
