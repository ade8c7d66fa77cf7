"""The Jinja text of a family template, rendered by transformers, against our own ids."""

import json

import pytest
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.templates import ALL_TEMPLATES
from megatron_chimed.data.templates.jinja_export import chat_template
from megatron_chimed.data.templates.transformers_check import check_chat_template
from megatron_chimed.errors import CheckpointError
from megatron_chimed.tokenizer import save_tokenizer
from tests.tiers import full_but
from tests.unit.data.templates import dialogues
from tests.unit.data.templates.families import HOSTILE, check

NAMES = ("chatml", "qwen3", "qwen3_nothink", "llama3")
WRITES = {
    "qwen3": {"reasoning": True},
    "llama3": {"calls": 1, "beside": False},
    "mistral": {"beside": False},
}


@pytest.mark.parametrize("name", NAMES)
def test_the_exported_chat_template_has_our_ids(name, request):
    family = {"chatml": "qwen2", "qwen3_nothink": "qwen3"}.get(name, name)
    used = request.getfixturevalue(family)
    template = ALL_TEMPLATES[name]
    text = chat_template(template, used.ours)
    found = dialogues.many(6, 30, **WRITES.get(name, {}))
    check(used, template, found, chat_template=text)
    for hostile in HOSTILE[1:2] if family == "llama3" else HOSTILE[::4]:
        with pytest.raises(TemplateError, match="which would be read as the token"):
            used.expected(Conversation((Turn(hostile, "好"),)), chat_template=text)


def test_the_exported_chat_template_of_mistral_renders_its_text(mistral):
    environment = ImmutableSandboxedEnvironment()
    environment.filters["tojson"] = json.dumps
    environment.globals["raise_exception"] = pytest.fail
    program = environment.from_string(chat_template(ALL_TEMPLATES["mistral"], mistral))
    given = Conversation((Turn("q", "a "), Turn("r", "b")), "s")
    messages = dialogues.messages_of(given)
    text = program.render(messages=messages, bos_token="<s>", eos_token="</s>")
    assert text == "<s>[INST] q[/INST] a</s>[INST] s\n\nr[/INST] b</s>"


@pytest.mark.parametrize("name", full_but(["qwen3"], NAMES))
def test_an_export_is_checked_with_transformers(name, request, tmp_path):
    family = "llama3" if name == "llama3" else "qwen3"
    tokenizer, template = request.getfixturevalue(family).ours, ALL_TEMPLATES[name]
    save_tokenizer(tokenizer, tmp_path)
    text = chat_template(template, tokenizer)
    (tmp_path / "chat_template.jinja").write_text(text, encoding="utf-8")
    check_chat_template(tmp_path, tokenizer, template)
    broken = text.replace("<|im_start|>user", "<|im_start|>system").replace("ipython", "user")
    (tmp_path / "chat_template.jinja").write_text(broken, encoding="utf-8")
    with pytest.raises(CheckpointError, match="but training used"):
        check_chat_template(tmp_path, tokenizer, template)
