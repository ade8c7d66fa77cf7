"""Stores a template in a checkpoint, in full, so that no file of the user is needed.

A model learns one chat template. Data and prompts in another one are refused, in training and
later, unless explicitly allowed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_chimed.data.datasets.sidecar import Rendering
from megatron_chimed.data.templates.chatml import ChatmlTemplate
from megatron_chimed.data.templates.llama3 import Llama3Template
from megatron_chimed.data.templates.loading import load_template
from megatron_chimed.data.templates.mistral import MistralTemplate
from megatron_chimed.data.templates.segment_template import SegmentTemplate
from megatron_chimed.data.templates.template import Template
from megatron_chimed.errors import ConfigError, DataError

STORED_KEY = "template"
"""Key of the template in a checkpoint's config.json."""

FORMAT = "format"
"""Key of a stored template of a model family."""

OTHER_FLAG = "--data.allow_other_template"


@dataclass(frozen=True, kw_only=True)
class TemplateUse:
    """Something that was made with a template."""

    where: str
    """Its name, such as `data.train data/chat`."""

    name: str
    """The template's name, or the path of its file; only for messages."""

    identity: str
    """`Template.identity`, which is compared."""

    def __str__(self) -> str:
        """For messages."""
        return f"{self.name!r} (identity {self.identity[:12]})"


def template_uses(renderings: Iterable[tuple[str, Rendering | None]]) -> list[TemplateUse]:
    """The templates of data, from names and renderings.

    Raises:
        DataError: The template of some data is unknown.
    """
    uses = []
    for where, made in renderings:
        if made is None:
            raise DataError(
                f"{where}: its .meta.json does not name the chat template it was made with, which "
                "a checkpoint must store for later use. Preprocess again."
            )
        uses.append(TemplateUse(where=where, name=made.template, identity=made.template_identity))
    return uses


def require_one_template(uses: Sequence[TemplateUse], *, flag: str = OTHER_FLAG) -> None:
    """Refuses a mix of templates.

    Args:
        uses: Uses of templates, in any order.
        flag: The flag that allows a mix, for the message.

    Raises:
        ConfigError: Two templates differ; the message names both and their origins.
    """
    other = next((use for use in uses if use.identity != uses[0].identity), None)
    if other is None:
        return
    raise ConfigError(
        f"{uses[0].where} has template {uses[0]}, but {other.where} has {other}. A model learns "
        "one chat template and must be prompted in it; a second one degrades both. Preprocess one "
        f"of them again with the template of the other, or allow it: {flag} true. Checkpoints then "
        "store the template of the first prefix of data.train."
    )


def template_of(use: TemplateUse) -> Template:
    """The full template that data were made with.

    Raises:
        ConfigError: The template file was changed, moved or removed since the data were made.
    """
    template = load_template(use.name)
    if template.identity != use.identity:
        raise ConfigError(
            f"{use.where} was made with a template {use.name} of identity {use.identity[:12]}, but "
            f"that file now has {template.identity[:12]}. Restore the old file, or preprocess "
            "again."
        )
    return template


def store_template(template: Template) -> dict[str, Any]:
    """All fields and the identity, as JSON values."""
    return {**template.fields(), "identity": template.identity}


def stored_template(value: Mapping[str, Any] | None, where: str) -> Template | None:
    """The template that `store_template` stored, or None.

    Args:
        value: The value under `STORED_KEY`.
        where: Name of the file, for messages.

    Raises:
        DataError: The value is damaged, or this version would render it differently.
    """
    if value is None:
        return None
    try:
        fields = {name: entry for name, entry in value.items() if name != "identity"}
        template = _template_from(fields)
    except (TypeError, KeyError, AttributeError, ConfigError) as error:
        raise DataError(f"{where}: its {STORED_KEY} cannot be read: {error}.") from None
    if template.identity != value.get("identity"):
        raise DataError(
            f"{where}: its {STORED_KEY} {template.name!r} has identity {template.identity[:12]} "
            f"here, but {str(value.get('identity'))[:12]} when it was stored, so it would make "
            "other tokens. Use the version of this program that wrote it."
        )
    return template


def _template_from(fields: dict[str, Any]) -> Template:
    """A template from its `fields`; without a format it is one of segments."""
    if FORMAT not in fields:
        return SegmentTemplate(**{**fields, "tags": tuple(fields["tags"])})
    kinds = {kind.FORMAT: kind for kind in (ChatmlTemplate, Llama3Template, MistralTemplate)}
    options = {name: value for name, value in fields.items() if name != FORMAT}
    return kinds[fields[FORMAT]](**options)


def agreed_template(stored: Template | None, given: Template | None, model: str) -> Template:
    """The template of a model: the one stored in its checkpoint, or the given one.

    Args:
        stored: The template in the checkpoint, or None.
        given: The template that the user gave, or None.
        model: Name of the model, for messages.

    Raises:
        ConfigError: The two differ, or both are None.
    """
    template = stored or given
    if template is None:
        raise ConfigError(
            f"{model} does not name its chat template, like base models and models from "
            "elsewhere, and it works in no other template. Name it with --template."
        )
    if stored is not None and given is not None and stored.identity != given.identity:
        raise ConfigError(
            f"{model} was trained with template {stored.name!r} (identity {stored.identity[:12]}), "
            f"not {given.name!r} ({given.identity[:12]}), which it has never seen. Remove "
            "--template."
        )
    return template
