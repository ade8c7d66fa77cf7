"""Exports a family template as Jinja text, for `transformers` to give the ids of training.

It renders the same text as the template. What would get other ids there is refused, never rendered:
transformers reads every added token in a text as that token, while here it is only text.
"""

import json

from megatron_chimed.data.templates import chatml, llama3
from megatron_chimed.data.templates.chatml import ChatmlTemplate
from megatron_chimed.data.templates.family_template import FamilyTemplate
from megatron_chimed.data.templates.llama3 import Llama3Template
from megatron_chimed.data.templates.mistral import MistralTemplate
from megatron_chimed.tokenizer import Tokenizer
from megatron_chimed.tokenizer.byte_bpe import ByteBpeTokenizer
from megatron_chimed.tokenizer.concatenation import recognised_only_by_transformers

_START = r"""
{#- Template @name@ of megatron_chimed, made from its definition: the ids are those of training. -#}
{%- set reserved = @reserved@ -%}
{%- macro plain(text) -%}
  {%- if text is not string -%}
    {{- raise_exception("the content of a message is not one text.") -}}
  {%- endif -%}
  {%- for token in reserved if token in text -%}
    {{- raise_exception("a text spells " ~ token ~ ", which would be read as the token and not "
        ~ "as these characters. Remove it.") -}}
  {%- endfor -%}
  {{- text -}}
{%- endmacro -%}
{%- set system = messages[0].content if messages[0].role == "system" else "" -%}
{%- set turns = messages[1:] if messages[0].role == "system" else messages -%}
"""

_CHATML = r"""
{%- set system = system or @default_system@ -%}
{%- if system or tools -%}
  {{- "<|im_start|>system\n" ~ plain(system) -}}
  {%- if tools -%}
    {{- ("\n\n" if system else "") ~ @tools_start@ -}}
    {%- for tool in tools -%}{{- "\n" ~ plain(tool | tojson) -}}{%- endfor -%}
    {{- @tools_end@ -}}
  {%- endif -%}
  {{- "<|im_end|>\n" -}}
{%- endif -%}
{%- set ns = namespace(last=-1) -%}
{%- for message in turns if message.role == "user" -%}
  {%- set ns.last = ns.last + 1 -%}
{%- endfor -%}
{%- set at = namespace(question=-1) -%}
{%- for message in turns -%}
  {%- if message.role == "user" -%}
    {%- set at.question = at.question + 1 -%}
    {{- "<|im_start|>user\n" ~ plain(message.content) ~ "<|im_end|>\n" -}}
  {%- elif message.role == "tool" -%}
    {%- if loop.previtem is not defined or loop.previtem.role != "tool" -%}
      {{- "<|im_start|>user" -}}
    {%- endif -%}
    {{- "\n<tool_response>\n" ~ plain(message.content) ~ "\n</tool_response>" -}}
    {%- if loop.nextitem is not defined or loop.nextitem.role != "tool" -%}
      {{- "<|im_end|>\n" -}}
    {%- endif -%}
  {%- elif message.role == "assistant" -%}
    {%- set text = message.content or "" -%}
    {%- set thought = message.reasoning_content or "" -%}
    {%- if @thinks@ and not thought and "</think>" in text -%}
      {%- set thought = text.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n") -%}
      {%- set text = text.split("</think>")[-1].lstrip("\n") -%}
    {%- endif -%}
    {{- "<|im_start|>assistant\n" -}}
    {%- if @thinks@ and at.question == ns.last and (loop.last or thought) -%}
      {{- "<think>\n" ~ plain(thought.strip("\n")) ~ "\n</think>\n\n" ~ plain(text.lstrip("\n")) -}}
    {%- else -%}
      {{- plain(text) -}}
    {%- endif -%}
    {%- for call in message.tool_calls or [] -%}
      {%- set call = call.function or call -%}
      {%- set given = call.arguments -%}
      {{- ("\n" if text or not loop.first else "") ~ '<tool_call>\n{"name": "' ~ plain(call.name)
          ~ '", "arguments": ' ~ plain(given if given is string else given | tojson)
          ~ "}\n</tool_call>" -}}
    {%- endfor -%}
    {{- "<|im_end|>\n" -}}
  {%- else -%}
    {{- raise_exception("a message of role " ~ message.role ~ " cannot stand here.") -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- "<|im_start|>assistant\n" -}}
  {%- if @thinks@ and not (enable_thinking if enable_thinking is defined else @on@) -%}
    {{- "<think>\n\n</think>\n\n" -}}
  {%- endif -%}
{%- endif -%}
"""

_LLAMA3 = r"""
{%- macro head(role) -%}
  {{- "<|start_header_id|>" ~ role ~ "<|end_header_id|>\n\n" -}}
{%- endmacro -%}
{{- "<|begin_of_text|>" ~ head("system") ~ ("Environment: ipython\n" if tools else "")
    ~ "Cutting Knowledge Date: December 2023\nToday Date: " ~ @date@ ~ "\n\n"
    ~ plain(system | trim) ~ "<|eot_id|>" -}}
{%- for message in turns -%}
  {%- if message.tool_calls -%}
    {%- if message.tool_calls | length != 1 or (message.content or "") | trim -%}
      {{- raise_exception("a message has several calls of tools, or a text beside one.") -}}
    {%- endif -%}
    {%- set call = message.tool_calls[0].function or message.tool_calls[0] -%}
    {%- set given = call.arguments -%}
    {{- head("assistant") ~ '{"name": "' ~ plain(call.name) ~ '", "parameters": '
        ~ plain(given if given is string else given | tojson) ~ "}<|eot_id|>" -}}
  {%- elif message.role == "tool" -%}
    {{- head("ipython") ~ plain(message.content | tojson) ~ "<|eot_id|>" -}}
  {%- elif message.role == "user" or message.role == "assistant" -%}
    {{- head(message.role) -}}
    {%- if loop.first and tools -%}
      {{- @tools_start@ -}}
      {%- for tool in tools -%}{{- plain(tool | tojson(indent=4)) ~ "\n\n" -}}{%- endfor -%}
    {%- endif -%}
    {{- plain(message.content | trim) ~ "<|eot_id|>" -}}
  {%- else -%}
    {{- raise_exception("a message of role " ~ message.role ~ " cannot stand here.") -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- head("assistant") -}}{%- endif -%}
"""

_MISTRAL = r"""
{%- set space = @space@ -%}
{%- set ns = namespace(last=-1) -%}
{%- for message in turns if message.role == "user" -%}
  {%- set ns.last = ns.last + 1 -%}
{%- endfor -%}
{%- set at = namespace(question=-1) -%}
{{- bos_token -}}
{%- for message in turns -%}
  {%- if message.role == "user" -%}
    {%- set at.question = at.question + 1 -%}
    {%- if tools and at.question == ns.last -%}
      {{- "[AVAILABLE_TOOLS]" ~ space ~ "[" -}}
      {%- for tool in tools -%}
        {{- '{"type": "function", "function": {' -}}
        {%- for key, value in tool.function.items() if key != "return" -%}
          {{- plain('"' ~ key ~ '": ' ~ ('"' ~ value ~ '"' if value is string else value | tojson))
              ~ ("" if loop.last else ", ") -}}
        {%- endfor -%}
        {{- "}}" ~ ("" if loop.last else ", ") -}}
      {%- endfor -%}
      {{- "][/AVAILABLE_TOOLS]" -}}
    {%- endif -%}
    {%- set before = system ~ "\n\n" if system and at.question == ns.last else "" -%}
    {{- "[INST]" ~ space ~ plain(before ~ message.content) ~ "[/INST]" -}}
  {%- elif message.tool_calls -%}
    {{- "[TOOL_CALLS]" ~ space ~ "[" -}}
    {%- for call in message.tool_calls -%}
      {{- plain((call.function | tojson)[:-1]) ~ ', "id": "' ~ plain(call.id) ~ '"}'
          ~ ("" if loop.last else ", ") -}}
    {%- endfor -%}
    {{- "]" ~ eos_token -}}
  {%- elif message.role == "tool" -%}
    {{- "[TOOL_RESULTS]" ~ space ~ '{"content": ' ~ plain(message.content) ~ ', "call_id": "'
        ~ plain(message.tool_call_id) ~ '"}[/TOOL_RESULTS]' -}}
  {%- elif message.role == "assistant" -%}
    {{- space ~ plain(message.content | trim) ~ eos_token -}}
  {%- else -%}
    {{- raise_exception("a message of role " ~ message.role ~ " cannot stand here.") -}}
  {%- endif -%}
{%- endfor -%}
"""


def family_chat_template(template: FamilyTemplate, tokenizer: Tokenizer) -> str:
    """The Jinja text.

    Args:
        template: The template to export.
        tokenizer: Tokens that only transformers reads in texts are refused there.
    """
    reserved = dict.fromkeys((*template.tokens, *recognised_only_by_transformers(tokenizer)))
    known = [token for token in reserved if tokenizer.find(token) is not None]
    values: dict[str, object] = {"reserved": known}
    if isinstance(template, ChatmlTemplate):
        program = _CHATML
        values |= {"default_system": template.default_system, "tools_end": chatml.TOOLS_END}
        values |= {"tools_start": chatml.TOOLS_START}
        values |= {"thinks": template.thinking != "none", "on": template.thinking == "on"}
    elif isinstance(template, Llama3Template):
        program, values = _LLAMA3, values | {"date": template.date}
        values |= {"tools_start": llama3.TOOLS_START}
    else:
        assert isinstance(template, MistralTemplate), f"{template} is not exported"
        program = _MISTRAL
        values |= {"space": "" if isinstance(tokenizer, ByteBpeTokenizer) else " "}
    text = (_START + program).replace("@name@", json.dumps(template.name).replace("#", ""))
    for name, value in values.items():
        text = text.replace(f"@{name}@", json.dumps(value, ensure_ascii=False))
    return text.lstrip("\n")
