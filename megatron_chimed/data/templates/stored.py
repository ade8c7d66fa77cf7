"""A template inside a checkpoint: whole, so that it needs no file of the user's."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_chimed.data.sidecar import Rendering
from megatron_chimed.data.templates.loading import load_template
from megatron_chimed.data.templates.template import Template
from megatron_chimed.errors import ConfigError, DataError

STORED_KEY = "template"
"""Where a checkpoint's config.json holds one."""


def template_of(renderings: Sequence[Rendering]) -> Template | None:
    """The template that all of a run's data were rendered with; None where there is no such one.

    Raises:
        ConfigError: A template file was changed, moved or lost since the data were made.
    """
    identities = {rendering.template_identity for rendering in renderings}
    if len(identities) != 1:
        return None
    (identity,) = identities
    name = renderings[0].template
    template = load_template(name)
    if template.identity != identity:
        raise ConfigError(
            f"the data were made with a template {name} of identity {identity[:12]}, but that file "
            f"now has {template.identity[:12]}. Put the old file back, or preprocess again."
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
