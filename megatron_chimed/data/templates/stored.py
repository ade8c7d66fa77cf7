"""A template inside a checkpoint: whole, so that it needs no file of the user's.

A model learns one frame for its turns. What it is given in another one, in training or later, is
refused unless that is asked for by name.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_chimed.data.datasets.sidecar import Rendering
from megatron_chimed.data.templates.loading import load_template
from megatron_chimed.data.templates.template import Template
from megatron_chimed.errors import ConfigError, DataError

STORED_KEY = "template"
"""Where a checkpoint's config.json holds one."""

OTHER_FLAG = "--data.allow_other_template"


@dataclass(frozen=True, kw_only=True)
class TemplateUse:
    """Something that was made with a template."""

    where: str
    """Names it, such as `data.train data/chat`."""

    name: str
    """The template's name, or the path of its file; only for messages."""

    identity: str
    """`Template.identity`: what is compared."""

    def __str__(self) -> str:
        """For messages."""
        return f"{self.name!r} (identity {self.identity[:12]})"


def template_uses(renderings: Iterable[tuple[str, Rendering | None]]) -> list[TemplateUse]:
    """The templates of conversations, from their places and renderings.

    Raises:
        DataError: Some do not say.
    """
    uses = []
    for where, made in renderings:
        if made is None:
            raise DataError(
                f"{where}: its .meta.json does not say with which chat template it was made, which "
                "a checkpoint must tell whoever speaks to the model. Preprocess again."
            )
        uses.append(TemplateUse(where=where, name=made.template, identity=made.template_identity))
    return uses


def require_one_template(uses: Sequence[TemplateUse], *, flag: str = OTHER_FLAG) -> None:
    """Refuses what was made with different templates.

    Args:
        uses: In any order; what has no template is not among them.
        flag: What allows it, for the message.

    Raises:
        ConfigError: Two differ; the message names both and where each comes from.
    """
    other = next((use for use in uses if use.identity != uses[0].identity), None)
    if other is None:
        return
    raise ConfigError(
        f"{uses[0].where} has template {uses[0]}, but {other.where} has {other}. A model learns "
        "one frame for its turns and is spoken to in it; a second one makes both worse. Preprocess "
        f"one of them again with the template of the other, or allow it: {flag} true. What is "
        "stored in checkpoints is then the template of the first prefix of data.train."
    )


def template_of(use: TemplateUse) -> Template:
    """The template that data were made with, whole.

    Raises:
        ConfigError: A template file was changed, moved or lost since the data were made.
    """
    template = load_template(use.name)
    if template.identity != use.identity:
        raise ConfigError(
            f"{use.where} was made with a template {use.name} of identity {use.identity[:12]}, but "
            f"that file now has {template.identity[:12]}. Put the old file back, or preprocess "
            "again."
        )
    return template


def store_template(template: Template) -> dict[str, Any]:
    """All fields and the identity, as JSON values."""
    fields = dataclasses.asdict(template)
    return {**fields, "tags": list(template.tags), "identity": template.identity}


def stored_template(value: Mapping[str, Any] | None, where: str) -> Template | None:
    """The template that `store_template` stored, or None.

    Args:
        value: What lies under `STORED_KEY`.
        where: Names the file, for messages.

    Raises:
        DataError: It is damaged, or this version makes other segments of it.
    """
    if value is None:
        return None
    try:
        fields = {name: entry for name, entry in value.items() if name != "identity"}
        template = Template(**{**fields, "tags": tuple(fields["tags"])})
    except (TypeError, KeyError, AttributeError, ConfigError) as error:
        raise DataError(f"{where}: its {STORED_KEY} cannot be read: {error}.") from None
    if template.identity != value.get("identity"):
        raise DataError(
            f"{where}: its {STORED_KEY} {template.name!r} has identity {template.identity[:12]} "
            f"here, but {str(value.get('identity'))[:12]} when it was stored, so it would make "
            "other tokens. Use the version of this program that wrote it."
        )
    return template


def agreed_template(stored: Template | None, given: Template | None, model: str) -> Template:
    """The template of a model: the one that its checkpoint holds.

    Args:
        stored: That one, or None.
        given: What the user believes it is, or knows where the checkpoint does not say.
        model: Names the model, for messages.

    Raises:
        ConfigError: The two differ, or nobody knows.
    """
    if stored is None and given is None:
        raise ConfigError(
            f"{model} does not say with which template it was trained, as base models and models "
            "from elsewhere do not, and in other frames it has learned nothing. Name it: "
            "--template."
        )
    if stored is not None and given is not None and stored.identity != given.identity:
        raise ConfigError(
            f"{model} was trained with template {stored.name!r} (identity {stored.identity[:12]}), "
            f"not {given.name!r} ({given.identity[:12]}), whose frames it has never seen. Leave "
            "--template out."
        )
    return stored or given
