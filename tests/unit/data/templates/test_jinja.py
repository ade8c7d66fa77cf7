"""The Jinja text of a template, rendered by transformers, against our own ids."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from transformers import AutoTokenizer

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.templates import (
    TEMPLATES,
    SegmentTemplate,
    encode_conversations,
    encode_prompts,
)
from megatron_chimed.data.templates.jinja_export import chat_template
from megatron_chimed.data.templates.transformers_check import check_chat_template, messages_of
from megatron_chimed.errors import CheckpointError
from megatron_chimed.tokenizer import SentencePieceTokenizer, SpecialTokens
from megatron_chimed.tokenizer.concatenation import overlapping
from megatron_chimed.tokenizer.saving import save_tokenizer
from tests.unit.tokenizer.models import train_bpe
from tests.unit.tokenizer.samples import train_model, train_unigram_model

CHATML = SegmentTemplate(
    name="chatml",
    prompt="<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
    system="<|im_start|>system\n{system}<|im_end|>",
    separator="\n",
    bos="first",
    tags=("<|im_start|>", "<|im_end|>"),
)
USERS = (
    CHATML,
    SegmentTemplate(
        name='Jinja\'s "own" #} {{', prompt="\\ {{ a }} {% b %} {# '\"\n{question}\r\n: 😀"
    ),
    SegmentTemplate(name="bare", prompt="{question}", system="{system}", add_bos=False),
    SegmentTemplate(
        name="tokens", prompt="<human>{question}<bot>", system="{system}", separator="<bot>"
    ),
)
ALL = {template.name: template for template in (*TEMPLATES.values(), *USERS)}
WORDS = (
    *(
        "发热",
        "a",
        ":",
        "\n",
        " ",
        "  ",
        "\u2581",
        "\t",
        "\r\n",
        "　",
        "3 天",
        "é",
        "e\u0301",
        "😀",
    ),
    *("<human>", "<bot>", "<human>:", "[human]:", "[bot]:", "<|im_start|>", "<|im_end|>"),
    *("<hu", "man>", "[bo", "t]:", "{question}", "{{", "%}", "\\n", "<", "</s>", "<s>"),
)
TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map("".join)
CONTROL = ("<s>", "</s>", "<unk>")


def with_added(model: bytes, *tokens: str) -> SentencePieceTokenizer:
    size = SentencePieceTokenizer(model).model_size
    return SentencePieceTokenizer(model, {text: size + place for place, text in enumerate(tokens)})


def with_end(model: bytes, token: str) -> SentencePieceTokenizer:
    """The end of sequence is a token that was added; `</s>` is none."""
    size = SentencePieceTokenizer(model).model_size
    special = SpecialTokens(bos_id=1, eos_id=size, unk_id=0, pad_id=0, add_bos=True)
    return SentencePieceTokenizer(model, {token: size}, special=special)


def folder_of(folder, tokenizer, template):
    folder.mkdir()
    save_tokenizer(tokenizer, folder)
    (folder / "chat_template.jinja").write_text(chat_template(template, tokenizer))
    return folder


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """By model and template: ours and theirs."""
    models = {
        "bpe": with_added(train_model(), "<human>", "<bot>"),
        "no tokens": with_added(train_model()),
        "unigram": with_added(train_unigram_model(), "<human>", "<bot>"),
        "own end": with_end(train_model(), "<|im_end|>"),
    }
    root, found = tmp_path_factory.mktemp("chat"), {}
    for kind, tokenizer in models.items():
        for name, template in ALL.items():
            folder = folder_of(root / f"{kind}-{len(found)}", tokenizer, template)
            found[kind, name] = tokenizer, AutoTokenizer.from_pretrained(folder)
    return found


def agree(tokenizer, theirs, template, conversation, *, whole=False):
    """Compares ids; whether transformers rendered the conversation."""
    if whole:
        (encoded,) = encode_conversations(tokenizer, template, [conversation])
        expected = encoded.ids.tolist()
    else:
        (expected,) = encode_prompts(tokenizer, template, [conversation])
    try:
        found = theirs.apply_chat_template(
            messages_of(conversation), add_generation_prompt=not whole, return_dict=False
        )
    except TemplateError:
        return False
    assert list(found) == expected, (template.name, conversation)
    return True


@settings(max_examples=150, deadline=None)
@given(
    pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3),
    system=st.one_of(st.just(""), TEXT),
    data=st.data(),
)
def test_ids_are_ours_for_any_conversation_that_is_rendered(loaded, pairs, system, data):
    kind, name = data.draw(st.sampled_from(sorted(loaded)))
    tokenizer, theirs = loaded[kind, name]
    template = ALL[name]
    turns = [Turn(*pair) for pair in pairs]
    turns[-1] = Turn(turns[-1].question, "")
    conversation = Conversation(tuple(turns), system)
    is_rendered = agree(tokenizer, theirs, template, conversation)
    cleaned, _ = template.without_tags(conversation)
    texts = [cleaned.system, *(t for turn in cleaned.turns for t in (turn.question, turn.answer))]
    spelled = any(token in text for token in CONTROL for text in texts)
    ends = any(text.endswith((" ", "\u2581")) for text in texts)
    assert is_rendered or spelled or (ends and kind != "unigram"), (template.name, conversation)
    assert not (is_rendered and spelled)


@pytest.mark.parametrize("name", ["ziya", "chimed"])
def test_spaces_around_questions_and_answers_are_rendered(loaded, name):
    texts = (" a ", "  b  ", " ", "\n", " \n ")
    for kind in ("bpe", "no tokens", "unigram"):
        for text in texts:
            turns = (Turn(text, text), Turn(text, ""))
            assert agree(*loaded[kind, name], ALL[name], Conversation(turns, f"{text}医生"))


def test_whole_conversations_have_the_ids_of_training(loaded):
    turns = (Turn("发热 3 天", " 多休息"), Turn("还发热\n", "请就诊\n"))
    for (_, name), (tokenizer, theirs) in loaded.items():
        for system in ("", "医生"):
            conversation = Conversation(turns, system)
            assert agree(tokenizer, theirs, ALL[name], conversation, whole=True)
    # A question alone, not to be answered: what stands before the answer in training data.
    tokenizer, theirs = loaded["bpe", "ziya"]
    question = [{"role": "user", "content": "a"}]
    assert theirs.apply_chat_template(question, tokenize=False) == "<human>:a\n<bot>:"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([("user", "a</s>b")], "a text spells </s>"),
        ([("system", "<unk>"), ("user", "a")], "a text spells <unk>"),
        ([("user", "a"), ("user", "b")], "of role user stands where one of assistant"),
        ([("assistant", "a")], "no message of the user to answer"),
        ([("user", "a"), ("assistant", "b")], "no message of the user to answer"),
        ([("user", "a"), ("system", "b"), ("user", "c")], "of role system stands where"),
        ([("user", "a"), ("tool", "b"), ("user", "c")], "of role tool stands where"),
        ([("system", "a")], "no message of the user"),
        ([("user", [{"type": "text", "text": "a"}])], "the content of a message is not one text"),
    ],
)
def test_what_training_data_cannot_hold_is_refused(loaded, messages, message):
    _, theirs = loaded["bpe", "ziya"]
    given_messages = [{"role": role, "content": content} for role, content in messages]
    with pytest.raises(TemplateError, match=message):
        theirs.apply_chat_template(given_messages, add_generation_prompt=True)


def test_a_space_that_would_join_the_next_is_refused_and_no_other(loaded):
    tokenizer, theirs = loaded["bpe", "zhongjing"]
    talk = lambda system: Conversation((Turn("a", ""),), system)  # noqa: E731
    assert agree(tokenizer, theirs, ALL["zhongjing"], talk(" 医生"))
    with pytest.raises(TemplateError, match="a text ends with a space, which would join"):
        theirs.apply_chat_template(messages_of(talk("医生 ")), add_generation_prompt=True)
    assert agree(*loaded["unigram", "zhongjing"], ALL["zhongjing"], talk("医生 "))


def test_begin_of_sequence_is_the_templates_and_never_doubled(tmp_path):
    model = train_model()
    for add_bos in (True, False):
        special = SpecialTokens(bos_id=1, eos_id=2, unk_id=0, pad_id=0, add_bos=add_bos)
        tokenizer = SentencePieceTokenizer(model, special=special)
        for name, counts in (("ziya", [1, 0]), ("zhongjing", [2, 2]), ("bare", [0, 0])):
            folder = folder_of(tmp_path / f"{add_bos}{name}", tokenizer, ALL[name])
            theirs = AutoTokenizer.from_pretrained(folder)
            talk = messages_of(Conversation((Turn("a", "b"), Turn("c", ""))))
            for is_prompt, count in zip((True, False), counts, strict=True):
                ids = theirs.apply_chat_template(talk, add_generation_prompt=is_prompt)["input_ids"]
                assert ids.count(1) == count, (add_bos, name, is_prompt)


def test_a_tokenizer_without_a_begin_has_none_in_its_chats(tmp_path):
    special = SpecialTokens(bos_id=None, eos_id=2, unk_id=0, pad_id=0, add_bos=False)
    tokenizer = SentencePieceTokenizer(train_model(), special=special)
    theirs = AutoTokenizer.from_pretrained(folder_of(tmp_path / "a", tokenizer, ALL["zhongjing"]))
    assert agree(tokenizer, theirs, ALL["zhongjing"], Conversation((Turn("a", "b"), Turn("c", ""))))


SPACED = SegmentTemplate(name="spaced", prompt="Q: {question} A: ")


@pytest.mark.parametrize(
    ("model", "template", "message"),
    [
        (train_model, SPACED, "refuses .* a text ends with a space, which would join"),
        (
            lambda: train_bpe(add_dummy_prefix=False, normalization_rule_name="identity"),
            TEMPLATES["chimed"],
            "refuses .* the tokenizer puts no space before a text",
        ),
        (
            lambda: train_unigram_model(user_defined_symbols=["热 3"]),
            TEMPLATES["chimed"],
            "refuses .* has pieces such as '.* that span a space",
        ),
        (
            lambda: train_bpe(remove_extra_whitespaces=False),
            TEMPLATES["chimed"],
            "refuses .* turns other characters into spaces and keeps them",
        ),
    ],
)
def test_what_one_text_cannot_show_fails_the_check(tmp_path, model, template, message):
    tokenizer = SentencePieceTokenizer(model())
    folder = folder_of(tmp_path / "hf", tokenizer, template)
    with pytest.raises(CheckpointError, match=message) as caught:
        check_chat_template(folder, tokenizer, template)
    assert "--without-chat-template" in str(caught.value)


def test_overlapping_tags_and_tokens_are_refused():
    tags = SegmentTemplate(name="x", prompt="{question}", tags=("[a]b", "b[c]"))
    with pytest.raises(CheckpointError, match=r"the tags '\[a\]b' and 'b\[c\]' overlap"):
        chat_template(tags, SentencePieceTokenizer(train_model()))
    with pytest.raises(CheckpointError, match="the tokens '<a' and '<a>' overlap"):
        chat_template(TEMPLATES["ziya"], with_added(train_model(), "<a", "<a>"))
    # A line break at the end of one text would be taken for the first half of the next one's token.
    with pytest.raises(CheckpointError, match=r"the tokens '\\n\\n' and '\\n\\n' overlap"):
        chat_template(TEMPLATES["ziya"], with_added(train_model(), "\n\n"))
    assert overlapping(["<human>", "<human>:", "\n\n"]) is None
    assert overlapping(["<human>", "<human>:"], or_begin=True) == ("<human>", "<human>:")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('joint=text and state.before', "joint=false"),
        ("segment(clean(message.content)) ~ eos_token", "segment(clean(message.content))"),
        ("add_generation_prompt -%}{{- bos_token", "false -%}{{- bos_token"),
        ('"<human>:" ~ clean', '"<human>: " ~ clean'),
        ("~ clean(message.content) ~", "~ message.content ~"),
        ("~ clean(message.content) ~", "~ clean(message.content) | trim ~"),
        ("~ clean(message.content) ~", '~ clean(message.content | replace("<human>", "")) ~'),
    ],
)  # fmt: skip
def test_a_chat_template_that_lies_is_found_out(tmp_path, old, new):
    tokenizer = with_added(train_model(), "<human>", "<bot>")
    folder = folder_of(tmp_path / "hf", tokenizer, ALL["ziya"])
    check_chat_template(folder, tokenizer, ALL["ziya"])
    text = (folder / "chat_template.jinja").read_text()
    assert old in text
    (folder / "chat_template.jinja").write_text(text.replace(old, new))
    with pytest.raises(CheckpointError, match="of template 'ziya' (gives|refuses) .*[Nn]othing"):
        check_chat_template(folder, tokenizer, ALL["ziya"])


def test_transformers_4_finds_the_same_text(tmp_path):
    """Its sandbox has neither `break` nor `generation`, and looks into tokenizer_config.json."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    tokenizer = with_added(train_model(), "<human>", "<bot>")
    folder = folder_of(tmp_path / "hf", tokenizer, CHATML)
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    text = (folder / "chat_template.jinja").read_text()
    talk = messages_of(Conversation((Turn("问<|im_end|>", ""),), "医生"))
    assert environment.from_string(text).render(
        messages=talk, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    ) == AutoTokenizer.from_pretrained(folder).apply_chat_template(
        talk, add_generation_prompt=True, tokenize=False
    )
