"""Templates of model families, on their real vocabularies, against their own chat templates.

Expected ids come from `apply_chat_template` of transformers: for Qwen3 and Llama 3 with the files
of the families, for Qwen2.5 and Mistral with a rendering written here from the published format.
"""

import json

import pytest

from megatron_chimed.data.formats.example import Conversation, Ranking, ToolCall, ToolStep, Turn
from megatron_chimed.data.preprocessing.plan import PreprocessConfig
from megatron_chimed.data.preprocessing.preprocess import preprocess
from megatron_chimed.data.templates import (
    ALL_TEMPLATES,
    FAMILY_TEMPLATES,
    TEMPLATES,
    Dropped,
    EncodedRanking,
    encode_conversations,
    encode_prompts,
    encode_rankings,
    require_fit,
    store_template,
    stored_template,
    template_for,
)
from megatron_chimed.errors import ConfigError
from megatron_chimed.tokenizer import SentencePieceTokenizer, load_tokenizer
from tests.unit.data.templates import dialogues
from tests.unit.data.templates.families import HOSTILE, MISTRAL_TOKENS, check
from tests.unit.tokenizer.byte_bpe import toy_json, write_folder
from tests.unit.tokenizer.samples import train_unigram_model

FEW, MANY = 100, 1000
COUNTS = [FEW, pytest.param(MANY, marks=pytest.mark.full)]


@pytest.mark.parametrize("count", COUNTS)
def test_qwen3_has_the_ids_of_its_own_template(qwen3, count):
    found = dialogues.many(1, count, reasoning=True)
    check(qwen3, ALL_TEMPLATES["qwen3"], found)


@pytest.mark.parametrize("count", COUNTS)
def test_qwen3_without_thinking_has_the_ids_of_its_own_template(qwen3, count):
    found = dialogues.many(2, count)
    options = {"enable_thinking": False}
    check(qwen3, ALL_TEMPLATES["qwen3_nothink"], found, prompt_options=options)


@pytest.mark.parametrize("count", COUNTS)
def test_llama3_has_the_ids_of_its_own_template(llama3, count):
    found = dialogues.many(3, count, calls=1, beside=False)
    check(llama3, ALL_TEMPLATES["llama3"], found, date_string="26 Jul 2024")


def qwen2_text(found, *, is_prompt=False):
    """The published format of Qwen2.5, with its default system text."""
    system = found.system or "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    if found.tools:
        listed = "\n".join(json.dumps(t, ensure_ascii=False) for t in json.loads(found.tools))
        system += (
            "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
            "You are provided with function signatures within <tools></tools> XML tags:\n"
            f"<tools>\n{listed}\n</tools>\n\nFor each function call, return a json object with "
            "function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
            '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
        )
    blocks = [("system", system)]
    for message in dialogues.messages_of(found):
        role, text = message["role"], message["content"]
        if role == "tool":
            answer = f"<tool_response>\n{text}\n</tool_response>"
            if blocks[-1][0] == "tool":
                answer = f"{blocks.pop()[1]}\n{answer}"
            blocks.append(("tool", answer))
        elif role != "system":
            parts = [text] if text or "tool_calls" not in message else []
            for call in message.get("tool_calls", ()):
                function = json.dumps(call["function"], ensure_ascii=False)
                parts.append(f"<tool_call>\n{function}\n</tool_call>")
            blocks.append((role, "\n".join(parts)))
    shown = [("user" if role == "tool" else role, text) for role, text in blocks]
    text = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in shown)
    return text + ("<|im_start|>assistant\n" if is_prompt else "")


@pytest.mark.parametrize("count", COUNTS)
def test_chatml_has_the_ids_of_the_format_of_qwen2(qwen2, count):
    found, template = dialogues.many(4, count), ALL_TEMPLATES["chatml"]
    for item, result in zip(found, encode_conversations(qwen2.ours, template, found), strict=True):
        assert result.ids.tolist() == qwen2.theirs.encode(qwen2_text(item)), item
    prompts = [dialogues.prompt_of(item, n) for item in found for n in range(len(item.turns))]
    for item, ids in zip(prompts, encode_prompts(qwen2.ours, template, prompts), strict=True):
        assert ids == qwen2.theirs.encode(qwen2_text(item, is_prompt=True)), item


def mistral_ids(tokenizer, found, *, is_prompt=False):
    """The published format of v0.3, part by part; the space after a token is a dummy prefix."""
    ids, users = [tokenizer.bos_id], 0
    ids_of = {token: tokenizer.find(token) for token in MISTRAL_TOKENS}
    for message in dialogues.messages_of(found):
        role, text = message["role"], message["content"]
        if role == "system":
            continue
        if role == "user":
            users += 1
            is_last = users == len(found.turns)
            if is_last and found.tools:
                functions = [t["function"] for t in json.loads(found.tools)]
                listed = json.dumps(
                    [{"type": "function", "function": f} for f in functions], ensure_ascii=False
                )
                ids += [ids_of["[AVAILABLE_TOOLS]"], *tokenizer.encode(listed)]
                ids.append(ids_of["[/AVAILABLE_TOOLS]"])
            text = f"{found.system}\n\n{text}" if is_last and found.system else text
            ids += [ids_of["[INST]"], *tokenizer.encode(text), ids_of["[/INST]"]]
        elif role == "tool":
            text = f'{{"content": {text}, "call_id": "{message["tool_call_id"]}"}}'
            ids += [ids_of["[TOOL_RESULTS]"], *tokenizer.encode(text), ids_of["[/TOOL_RESULTS]"]]
        elif "tool_calls" in message:
            calls = [call["function"] | {"id": call["id"]} for call in message["tool_calls"]]
            written = tokenizer.encode(json.dumps(calls, ensure_ascii=False))
            ids += [ids_of["[TOOL_CALLS]"], *written, tokenizer.eos_id]
        else:
            ids += [*tokenizer.encode(text.strip()), tokenizer.eos_id]
    return ids


@pytest.mark.parametrize("count", COUNTS)
def test_mistral_has_the_ids_of_its_format(mistral, count):
    found, template = dialogues.many(5, count, beside=False), ALL_TEMPLATES["mistral"]
    for item, result in zip(found, encode_conversations(mistral, template, found), strict=True):
        assert result.ids.tolist() == mistral_ids(mistral, item), item
    prompts = [dialogues.prompt_of(item, n) for item in found for n in range(len(item.turns))]
    for item, ids in zip(prompts, encode_prompts(mistral, template, prompts), strict=True):
        assert ids == mistral_ids(mistral, item, is_prompt=True), item


@pytest.mark.parametrize("name", FAMILY_TEMPLATES)
def test_hostile_texts_end_no_turn(name, request):
    """The marks of the template occur as often as with harmless texts, wherever they are."""
    family = {"chatml": "qwen2", "qwen3_nothink": "qwen3"}.get(name, name)
    found = request.getfixturevalue(family)
    tokenizer = found if family == "mistral" else found.ours

    def marks(text):
        call = ToolCall("查药", json.dumps({"x": text}), "a" * 9)
        turns = (Turn(text, f"好{text}"), Turn(text, "好", steps=(ToolStep((call,), (text,)),)))
        tools = json.dumps([{"type": "function", "function": {"name": text}}])
        given = Conversation(turns, text, tools)
        [encoded] = encode_conversations(tokenizer, ALL_TEMPLATES[name], [given])
        # Qwen3 itself reads </think> in an answer as the end of reasoning.
        ids = (i for i in encoded.ids.tolist() if i != tokenizer.unk_id)
        return [i for i in ids if tokenizer.is_control(i)], encoded.end_tokens

    for text in HOSTILE:
        if name.startswith("qwen3") and "</think>" in text:
            continue
        assert marks(text) == marks("无害")


def test_reasoning_within_an_answer_is_read_as_qwen3_reads_it(qwen3):
    answers = ("<think>\n想\n</think>\n\n多休息", "想</think>多休息", "<think>\n\n</think>\n\n好")
    found = [Conversation((Turn("头痛", a), Turn("还痛", a))) for a in answers]
    check(qwen3, ALL_TEMPLATES["qwen3"], found)


def learned(tokenizer, encoded):
    """The tokens that are learned; a gap is a bar."""
    parts, is_open = [], False
    for index, flag in zip(encoded.ids.tolist(), encoded.mask.tolist(), strict=True):
        if flag:
            text = tokenizer.decode([index], keep_special=True)
            if is_open:
                parts[-1] += text
            else:
                parts.append(text)
        is_open = bool(flag)
    return "|".join(parts)


THOUGHT = Conversation((Turn("头痛", "多休息", reasoning="甲"), Turn("x", "好", reasoning="乙")))
PLAIN = Conversation((Turn("头痛", "多休息"), Turn("x", "\n好")))


@pytest.mark.parametrize(
    ("name", "found", "options", "expected"),
    [
        ("chatml", PLAIN, {}, "多休息<|im_end|>|\n\n好<|im_end|>"),
        ("chatml", PLAIN, {"targets": "last"}, "\n\n好<|im_end|>"),
        ("qwen3", PLAIN, {}, "多休息<|im_end|>|<think>\n\n</think>\n\n好<|im_end|>"),
        ("qwen3", THOUGHT, {}, "<think>\n乙\n</think>\n\n好<|im_end|>"),
        ("qwen3_nothink", PLAIN, {}, "多休息<|im_end|>|好<|im_end|>"),
        ("llama3", PLAIN, {}, "多休息<|eot_id|>|好<|eot_id|>"),
    ],
)
def test_what_is_learned(name, found, options, expected, request):
    """An answer that starts with a line break shares a token with the one before: learned."""
    family = {"chatml": "qwen2", "qwen3_nothink": "qwen3"}.get(name, name)
    tokenizer = request.getfixturevalue(family).ours
    [encoded] = encode_conversations(tokenizer, ALL_TEMPLATES[name], [found], **options)
    assert learned(tokenizer, encoded) == expected
    assert encoded.end_tokens == expected.count("<|im_end|>") + expected.count("<|eot_id|>")


def test_calls_of_tools_are_learned_and_results_are_not(qwen3):
    step = ToolStep((ToolCall("bmi", '{"kg": 70}'),), ("24.2",), "查一下")
    given = Conversation((Turn("bmi?", "24", steps=(step,)),))
    [encoded] = encode_conversations(qwen3.ours, ALL_TEMPLATES["chatml"], [given])
    call = '<tool_call>\n{"name": "bmi", "arguments": {"kg": 70}}\n</tool_call>'
    assert learned(qwen3.ours, encoded) == f"查一下\n{call}<|im_end|>|24<|im_end|>"
    assert encoded.end_tokens == 2


def test_all_targets_learn_the_line_break_after_the_end(qwen3):
    [encoded] = encode_conversations(qwen3.ours, ALL_TEMPLATES["qwen3"], [PLAIN], targets="all")
    assert encoded.mask.tolist() == [0] + [1] * (len(encoded.ids) - 1)


@pytest.mark.parametrize("name", ["chatml", "qwen3", "llama3"])
def test_a_conversation_that_does_not_fit_is_that_of_its_first_turns(name, request):
    """Qwen3 keeps reasoning in the last turn, so what is kept is rendered again."""
    family = request.getfixturevalue("llama3" if name == "llama3" else "qwen3")
    template, given = ALL_TEMPLATES[name], THOUGHT if name == "qwen3" else PLAIN
    [whole] = encode_conversations(family.ours, template, [given])
    first = Conversation(given.turns[:1])
    [expected] = encode_conversations(family.ours, template, [first])
    [kept] = encode_conversations(
        family.ours, template, [given], seq_length=len(expected.ids), truncation="cut"
    )
    assert kept.ids.tolist() == expected.ids.tolist()
    assert (kept.dropped_turns, kept.cut, kept.end_tokens) == (1, False, 1)
    [cut] = encode_conversations(
        family.ours, template, [given], seq_length=len(expected.ids) - 3, truncation="cut"
    )
    assert (cut.dropped_turns, cut.cut, cut.end_tokens) == (1, True, 0)
    assert cut.ids.tolist() == expected.ids.tolist()[:-3]
    [none] = encode_conversations(family.ours, template, [given], seq_length=5, truncation="cut")
    assert none == Dropped(reason="too_long")
    assert len(whole.ids) > len(kept.ids)


@pytest.mark.parametrize("name", ["chatml", "qwen3", "qwen3_nothink", "llama3"])
def test_candidates_continue_the_prompt(name, request):
    family = request.getfixturevalue("llama3" if name == "llama3" else "qwen3")
    template, prompt = ALL_TEMPLATES[name], Conversation((Turn("头痛", "睡"), Turn("还痛", "")))
    ranking = Ranking(prompt, ("多休息", "就诊。"), (0, 1))
    [ids] = encode_prompts(family.ours, template, [prompt])
    [found] = encode_rankings(family.ours, template, [ranking])
    assert isinstance(found, EncodedRanking)
    assert found.prompt_length == len(ids)
    for candidate, tokens, mask in zip(ranking.candidates, found.ids, found.masks, strict=True):
        answered = Conversation((*prompt.turns[:1], Turn("还痛", candidate)))
        [expected] = encode_conversations(family.ours, template, [answered], targets="last")
        assert tokens.tolist() == expected.ids.tolist()
        assert mask.tolist() == expected.mask.tolist()
        assert tokens[: len(ids)].tolist() == ids


def test_a_candidate_that_starts_with_a_line_break_shortens_the_common_prompt(qwen3):
    ranking = Ranking(Conversation((Turn("头痛", ""),)), ("\n多休息", "就诊"), (0, 1))
    [ids] = encode_prompts(qwen3.ours, ALL_TEMPLATES["chatml"], [ranking.prompt])
    [found] = encode_rankings(qwen3.ours, ALL_TEMPLATES["chatml"], [ranking])
    assert found.prompt_length == len(ids) - 1
    assert [mask.tolist().index(1) for mask in found.masks] == [len(ids) - 1, len(ids)]


def test_the_template_follows_from_the_special_tokens(qwen2, qwen3, llama3, mistral):
    tokenizers = (qwen2.ours, qwen3.ours, llama3.ours, mistral)
    names = [template_for(tokenizer).name for tokenizer in tokenizers]
    assert names == ["chatml", "qwen3", "llama3", "mistral"]
    assert template_for(SentencePieceTokenizer(train_unigram_model())) is None


def test_stop_ids(qwen3, llama3, mistral):
    assert ALL_TEMPLATES["qwen3"].stop_ids(qwen3.ours) == (151645, 151643)
    assert ALL_TEMPLATES["llama3"].stop_ids(llama3.ours) == (128009, 128001)
    assert ALL_TEMPLATES["mistral"].stop_ids(mistral) == (mistral.eos_id,)


@pytest.mark.parametrize(
    ("name", "family", "fits"),
    [
        ("llama3", "qwen3", "chatml or qwen3 or qwen3_nothink"),
        ("qwen3", "qwen2", "chatml"),
        ("qwen3", "llama3", "llama3"),
        ("ziya", "llama3", "llama3"),
        ("mistral", "qwen2", "chatml"),
    ],
)
def test_a_template_of_another_family_is_refused(name, family, fits, request):
    tokenizer = request.getfixturevalue(family).ours
    template = ALL_TEMPLATES[name]
    for use in (
        lambda: require_fit(template, tokenizer),
        lambda: encode_conversations(tokenizer, template, [PLAIN]),
        lambda: encode_prompts(tokenizer, template, []),
        lambda: encode_rankings(tokenizer, template, []),
    ):
        with pytest.raises(ConfigError, match=f"{name!r} does not fit.*--template {fits}"):
            use()


def test_our_templates_fit_sentencepiece_only_and_families_need_their_tokens():
    tokenizer = SentencePieceTokenizer(train_unigram_model())
    for template in TEMPLATES.values():
        require_fit(template, tokenizer)
    for template in FAMILY_TEMPLATES.values():
        with pytest.raises(ConfigError, match="--template ziya or chimed or zhongjing"):
            require_fit(template, tokenizer)


def test_a_tokenizer_that_no_template_fits_is_told_what_is_missing(tmp_path):
    """As of DeepSeek-LLM: byte-level, with an end of sequence and nothing that marks turns."""
    content = toy_json()
    content["added_tokens"] = [
        {**token, "content": token["content"].replace("im_", "turn_")}
        for token in content["added_tokens"]
    ]
    named = {"eos_token": "<|endoftext|>"}
    folder = write_folder(tmp_path, content, tokenizer_config=named)
    needed = r"no chat template fits the tokenizer.*chatml \(<\|im_start\|>, <\|im_end\|>\).*Add "
    with pytest.raises(ConfigError, match=f"'ziya' does not fit the tokenizer.*{needed}"):
        require_fit(ALL_TEMPLATES["ziya"], load_tokenizer(folder))
    (tmp_path / "chat.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    config = PreprocessConfig(
        inputs=(str(tmp_path / "chat.jsonl"),),
        tokenizer=str(folder),
        output_prefix=str(tmp_path / "out"),
        stage="sft",
    )
    with pytest.raises(ConfigError, match=f"--stage sft: {needed}"):
        preprocess(config)


@pytest.mark.parametrize("name", FAMILY_TEMPLATES)
def test_a_stored_template_is_the_same(name):
    template = FAMILY_TEMPLATES[name]
    stored = stored_template(json.loads(json.dumps(store_template(template))), "config.json")
    assert stored == template
    assert stored.identity == template.identity
    assert len({entry.identity for entry in ALL_TEMPLATES.values()}) == len(ALL_TEMPLATES)


CALL = ToolStep((ToolCall("bmi", "{}", "a" * 9),), ("1",))
TWO = ToolStep((ToolCall("bmi", "{}"), ToolCall("bmi", "{}")), ("1", "2"))


@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("chatml", THOUGHT, "--drop-reasoning"),
        ("qwen3_nothink", THOUGHT, "--drop-reasoning"),
        ("llama3", THOUGHT, "--drop-reasoning"),
        ("mistral", THOUGHT, "--drop-reasoning"),
        ("llama3", Conversation((Turn("q", "a", steps=(TWO,)),)), "one call"),
        ("mistral", Conversation((Turn("q", "a", steps=(TWO,)),)), "9 letters"),
        ("mistral", Conversation((Turn("q", "a"),), tools='["x"]'), "not of the form"),
        ("qwen3", Conversation((Turn("q", "a"),), tools="x("), "not JSON"),
        ("qwen3", THOUGHT, None),
        ("qwen3", Conversation((Turn("q", "a", steps=(TWO,)),)), None),
        ("llama3", Conversation((Turn("q", "a", steps=(CALL,)),)), None),
        ("mistral", Conversation((Turn("q", "a", steps=(CALL,)),)), None),
    ],
)
def test_what_a_family_cannot_write_is_refused(name, given, reason):
    found = ALL_TEMPLATES[name].misfit(given)
    assert (found is None) if reason is None else (found and reason in found)
