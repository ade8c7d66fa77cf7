"""Exports a template as the Jinja text with which `transformers` renders conversations.

Jinja renders one text, while a template has segments that are encoded separately; so a space is put
between two adjacent texts, in place of the dummy prefix of the second. What would get other ids
than in training is refused (`raise_exception`), never rendered: a text that spells `</s>`, which
transformers reads as the token, and a text that ends with a space which would merge with that one.
"""

import json
from collections.abc import Iterable

from megatron_chimed.data.templates.family_jinja import family_chat_template
from megatron_chimed.data.templates.family_template import FamilyTemplate
from megatron_chimed.data.templates.segment_template import QUESTION, SYSTEM, SegmentTemplate
from megatron_chimed.data.templates.template import Template
from megatron_chimed.errors import CheckpointError
from megatron_chimed.tokenizer import Tokenizer
from megatron_chimed.tokenizer.concatenation import (
    SPACES,
    Concatenation,
    concatenation_of,
    overlapping,
    recognised_only_by_transformers,
)

_PROGRAM = r"""
{#- Template @name@ of megatron_chimed, made from its definition: the ids are those of training. -#}
{%- set tags = @tags@ -%}
{%- set added = @added@ -%}
{%- set control = @control@ -%}
{%- set state = namespace(before="") -%}

{#- A text without the template's tags: all at once, again until none is left. -#}
{%- macro clean(text) -%}
  {%- set it = namespace(text=text, parts=[], cut=[], found=tags | length > 0) -%}
  {%- for _ in text if it.found -%}
    {%- set it.parts = [it.text] -%}
    {%- for tag in tags -%}
      {%- set it.cut = [] -%}
      {%- for part in it.parts -%}{%- set it.cut = it.cut + part.split(tag) -%}{%- endfor -%}
      {%- set it.parts = it.cut -%}
    {%- endfor -%}
    {%- set it.found = it.parts | length > 1 -%}
    {%- set it.text = it.parts | join -%}
  {%- endfor -%}
  {{- it.text -}}
{%- endmacro -%}

{#- A text that is encoded alone: behind another one, a space is its dummy prefix. -#}
{%- macro segment(text) -%}
  {%- for token in control if token in text -%}
    {{- raise_exception("a text spells " ~ token ~ ", which would be read as the token and not "
        ~ "as these characters. Remove it.") -}}
  {%- endfor -%}
  {%- set at = namespace(joint=text and state.before) -%}
  {%- for token in added if state.before.endswith(token) or text.startswith(token) -%}
    {%- set at.joint = false -%}
  {%- endfor -%}
  {%- if at.joint -%}@joint@{%- endif -%}
  {{- text -}}
  {%- if text -%}{%- set state.before = text -%}{%- endif -%}
{%- endmacro -%}

{%- for message in messages if message.content is not string -%}
  {{- raise_exception("the content of a message is not one text.") -}}
{%- endfor -%}
{%- set system = clean(messages[0].content) if messages[0].role == "system" else "" -%}
{%- set turns = messages[1:] if messages[0].role == "system" else messages -%}
{%- if not turns or (add_generation_prompt and turns[-1].role != "user") -%}
  {{- raise_exception("there is no message of the user to answer at the end.") -}}
{%- endif -%}
{%- for message in turns -%}
  {%- if message.role != ["user", "assistant"][loop.index0 % 2] -%}
    {{- raise_exception("a message of role " ~ message.role ~ " stands where one of "
        ~ ["user", "assistant"][loop.index0 % 2] ~ " was expected: after an optional system "
        ~ "message, user and assistant take turns.") -}}
  {%- endif -%}
  {%- if message.role == "assistant" -%}
    {{- segment(clean(message.content)) ~ eos_token -}}
    {%- set state.before = "" -%}
  {%- else -%}
    {%- if loop.first -%}
      @first_bos@
      {%- if system -%}
        {{- segment(@system_start@ ~ system ~ @system_end@) -}}@separator@
      {%- endif -%}
    {%- else -%}
      @separator@@later_bos@
    {%- endif -%}
    {{- segment(@prompt_start@ ~ clean(message.content) ~ @prompt_end@) -}}
  {%- endif -%}
{%- endfor -%}
"""
_BOS = '{{- bos_token -}}{%- set state.before = "" -%}'


def chat_template(template: Template, tokenizer: Tokenizer) -> str:
    """The Jinja text; `check_chat_template` verifies that it gives our ids.

    Args:
        template: The template to export.
        tokenizer: Decides which texts are tokens, and how two texts can be concatenated.

    Raises:
        CheckpointError: Tags or tokens overlap.
    """
    if isinstance(template, FamilyTemplate):
        return family_chat_template(template, tokenizer)
    assert isinstance(template, SegmentTemplate), f"{template} is not exported"
    return _segment_chat_template(template, tokenizer)


def _segment_chat_template(template: SegmentTemplate, tokenizer: Tokenizer) -> str:
    """The Jinja text of a template of segments.

    A conversation that ends with an answer is rendered like training data; one that ends with a
    question is rendered up to its answer, with `add_generation_prompt` as a prompt.
    """
    control = recognised_only_by_transformers(tokenizer)
    _check_overlaps(template, tokenizer.added_tokens, control)
    separator = f"{{{{- segment({_literal(template.separator)}) -}}}}" if template.separator else ""
    prompt_start, _, prompt_end = template.prompt.partition(QUESTION)
    system_start, _, system_end = template.system.partition(SYSTEM)
    values = {
        "name": json.dumps(template.name).replace("#", ""),  # it is part of a comment
        "tags": _literals(sorted(template.tags, key=lambda tag: (-len(tag), tag))),
        "added": _literals(tokenizer.added_tokens),
        "control": _literals(control),
        "joint": _joint(concatenation_of(tokenizer)),
        "first_bos": _first_bos(template) if tokenizer.bos_id is not None else "",
        "later_bos": _BOS if template.bos == "every" and tokenizer.bos_id is not None else "",
        "separator": separator,
        "prompt_start": _literal(prompt_start),
        "prompt_end": _literal(prompt_end),
        "system_start": _literal(system_start),
        "system_end": _literal(system_end),
    }
    pieces = _PROGRAM.lstrip("\n").split("@")
    return "".join(values[piece] if at % 2 else piece for at, piece in enumerate(pieces))


def _first_bos(template: SegmentTemplate) -> str:
    if template.bos != "none":
        return _BOS
    return f"{{%- if add_generation_prompt -%}}{_BOS}{{%- endif -%}}" if template.add_bos else ""


def _joint(concatenation: Concatenation) -> str:
    """What separates two texts: a space, or a refusal."""
    if concatenation.fault:
        return _refusal(
            f"{concatenation.fault}, so one text cannot show where a training answer began."
        )
    space = '{{- " " -}}'
    if not concatenation.joins_spaces:
        return space
    refusal = _refusal("a text ends with a space, which would join with the next text's. Cut it.")
    return f"{{%- if state.before[-1] in {_literals(SPACES)} -%}}{refusal}{{%- endif -%}}{space}"


def _check_overlaps(
    template: SegmentTemplate, added: Iterable[str], control: Iterable[str]
) -> None:
    tokens = [*added, *control]
    for what, pair in (
        ("tokens", overlapping(tokens, or_begin=True)),
        ("tags", overlapping(template.tags)),
    ):
        if pair:
            raise CheckpointError(
                f"template {template.name!r}: the {what} {pair[0]!r} and {pair[1]!r} overlap, so a "
                "Jinja template cannot parse a text with both. Export without one: "
                "--without-chat-template."
            )


def _refusal(message: str) -> str:
    return f"{{{{- raise_exception({_literal(message)}) -}}}}"


def _literals(texts: Iterable[str]) -> str:
    return f"[{', '.join(map(_literal, texts))}]"


def _literal(text: str) -> str:
    """A Jinja string: escapes as in Python, other characters unchanged."""
    return json.dumps(text, ensure_ascii=False)
