"""No key of a row is dropped in silence: read, inert, meaning-changing, or listed as unread."""

import dataclasses

import pytest

from megatron_chimed.data.formats.example import (
    Conversation,
    Ranking,
    Turn,
    UnpairedAnswer,
    has_tools,
)
from megatron_chimed.data.formats.format import CONTEXT_KEYS
from megatron_chimed.data.formats.keys import (
    ANNOTATIONS,
    INERT,
    MEANINGS,
    UnreadKeys,
    key_table,
)
from megatron_chimed.data.formats.registry import FORMATS, ReadOptions, detect_format
from megatron_chimed.data.formats.row import RowError

QA = {"question": "q", "answer": "a"}
TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
FOUR = {"A": "夜盲症", "B": "坏血病", "C": "脚气病", "D": "佝偻病"}
CALL = {"id": "1", "function": {"name": "search", "arguments": '{"x": 1}'}}
MARKED = "\n\nHuman: q\n\nAssistant: a\n\nHuman: r"


def read(row, **options):
    """The examples of a row, in the format that is detected."""
    return list(detect_format([row], "x").examples(row, ReadOptions(**options)))


def unread(row):
    found = UnreadKeys()
    detect_format([row], "x").examples(row, ReadOptions(), found)
    return found.to_json()


def answered(**changes):
    return [TALK[0], {**TALK[1], **changes}]


MEANING = [
    *({**QA, key: "x"} for key in ("image", "images", "audio", "video", "Image", "image-path")),
    *({**QA, key: [1]} for key in ("tool_calls", "function_call", "context", "documents")),
    *({**QA, key: "x"} for key in ("context", "passage", "input", "messages", "text", "options")),
    *({**QA, key: "x"} for key in ("rejected", "best_answer", "mask", "train_detail", "A")),
    *({**QA, key: 0} for key in ("loss_mask", "weight", "train_on_turn")),
    {**QA, "weight": 0.5},
    {**QA, "loss_mask": [0]},
    {**QA, "loss_mask": [1, 1]},
    {"messages": TALK, "text": "x"},
    {"messages": TALK, "conversations": [TALK[0], {**TALK[1], "content": "b"}]},
    {"messages": answered(mask=1)},
    {"messages": answered(name="x")},
    {"messages": answered(weight=0)},
    {"messages": answered(weight=0.5)},
    {"messages": answered(image="x.png")},
    {"messages": [{**TALK[0], "train": True}, TALK[1]]},
    {**QA, "question": "other", "问": "q", "答": "a"},
    {"prompt": MARKED + "\n\nAssistant:", "response": "a"},
    {"question": "Human: q", "answer": "Assistant: a"},
    {"instruction": "q", "output": "a\n### Instruction:\nr\n### Response:\nb"},
    {"prompt": "other", "chosen": TALK, "rejected": [TALK[0], {**TALK[1], "content": "b"}]},
    {"instruction": ["q", "r"], "output": ["a"]},
    {"system": "s", "system_prompt": "t", **QA},
    {"question": "q", "options": FOUR, "answer": "F"},
    {"question": "q", "options": FOUR, "answer": "A", "answer_idx": "B"},
    {"text": "x", "image": "x.png"},
]


@pytest.mark.parametrize("row", MEANING, ids=str)
def test_a_key_that_changes_the_meaning_makes_the_row_bad(row):
    with pytest.raises(RowError):
        read(row)


@pytest.mark.parametrize("value", [None, "", [], {}, "[]"])
def test_a_key_without_a_value_says_nothing(value):
    plain = read(QA)
    assert read({**QA, "images": value, "tool_calls": value, "context": value}) == plain


def test_unread_keys_are_counted_with_an_example_and_inert_ones_are_not():
    row = {**QA, "id": 1, "Source": "x", "cate_1": "y", "心情": "好" * 80, "mood": 1, "void": None}
    assert unread(row) == [
        {"name": "心情", "rows": 1, "example": '"' + "好" * 56 + "..."},
        {"name": "mood", "rows": 1, "example": "1"},
    ]
    assert unread({"messages": answered(mood=[1])}) == [
        {"name": "messages[].mood", "rows": 1, "example": "[1]"}
    ]
    assert unread({"text": "x", "title": "y", "question": "z"}) == [
        {"name": "title", "rows": 1, "example": '"y"'},
        {"name": "question", "rows": 1, "example": '"z"'},
    ]
    with pytest.raises(RowError, match="key '心情' is not read, which --strict-keys forbids"):
        read(row, strict_keys=True)


def test_counts_of_two_parts_add_up_in_order():
    first, second = UnreadKeys(), UnreadKeys()
    first.add("a", 1)
    second.add("b", 2)
    second.add("a", 3)
    total = (first + second).to_json()
    assert total == [
        {"name": "a", "rows": 2, "example": "1"},
        {"name": "b", "rows": 1, "example": "2"},
    ]
    assert UnreadKeys.from_json(total).to_json() == total


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_names_all_keys_of_its_sample(name):
    entry = FORMATS[name]
    kind = "text" if entry.reads_texts else "row"
    used = entry.keys | {"text"} if entry.reads_texts else entry.keys
    if isinstance(entry.sample, dict):
        table = key_table(tuple(entry.sample), used | CONTEXT_KEYS, entry.one_of, kind=kind)
        assert not (table.refused or table.unread)


def test_no_name_is_in_two_tables():
    assert not INERT & MEANINGS.keys() and not INERT & ANNOTATIONS.keys()


@pytest.mark.parametrize(
    ("role", "answerer"), [("developer", "chatgpt"), ("system", "bot"), ("developer", "model")]
)
def test_names_of_roles_that_other_sets_use(role, answerer):
    messages = [("s", role), ("q", "user"), ("a", answerer)]
    row = {"messages": [{"role": who, "content": text} for text, who in messages]}
    assert read(row) == [Conversation((Turn("q", "a"),), "s")]


ULTRAFEEDBACK = {
    "prompt": "q",
    "prompt_id": "1",
    "chosen": TALK,
    "rejected": [TALK[0], {**TALK[1], "content": "b"}],
    "messages": TALK,
    "score_chosen": 8.0,
    "score_rejected": 6.0,
}


def test_a_repeated_chosen_conversation_is_no_prompt():
    pair = Ranking(Conversation((Turn("q", ""),)), ("a", "b"), (0, 1))
    assert read(ULTRAFEEDBACK) == [pair]
    texts = {**ULTRAFEEDBACK, "chosen": "a", "rejected": "b"}
    assert read(texts) == [pair]


EXAMS = [
    {"question": "q", "option": FOUR, "answer": "B"},
    {"question": "q", "options": FOUR, "answer": "b"},
    {"question": "q", "options": FOUR, "answer": "Ｂ"},
    {"question": "q", "options": FOUR, "answer": "坏血病"},
    {"question": "q", "options": FOUR, "answer": "B. 坏血病"},
    {"question": "q", "options": FOUR, "answer": "答案：B"},
    {"question": "q", "options": FOUR, "answer_idx": "B", "answer": "坏血病"},
    {"question": "q", "options": [*FOUR.values()], "answer": 1},
    {"question": "q", "options": [*FOUR.values()], "answer": "1"},
    {"question": "q", "choices": [*FOUR.values()], "label": 1},
    {"question": "q", "options": [*FOUR.values()], "answer": "坏血病", "answer_idx": 2},
    {"question": "q", "options": [f"{k}. {v}" for k, v in FOUR.items()], "answer": "B"},
    {"question": "q", "options": [{"key": k, "value": v} for k, v in FOUR.items()], "answer": "B"},
    {"question": "q", "options": [{k: v} for k, v in FOUR.items()], "answer": "B"},
    {"question": "q", "choices": {"label": [*FOUR], "text": [*FOUR.values()]}, "answer": ["B"]},
    {"question": "q", **{f"option_{k.lower()}": v for k, v in FOUR.items()}, "answer": "B"},
    {"question": "q", **{f"选项{k}": v for k, v in FOUR.items()}, "答案": "B"},
    {"question": "q", **FOUR, "answer": 1},
    {"题干": "q", "选项": "\n".join(f"{k}、{v}" for k, v in FOUR.items()), "答案": "B"},
    {"question": "q", "options": " ".join(f"{k}.{v}" for k, v in FOUR.items()), "answer": "B"},
    {"question": "q", "option": {**FOUR, "E": "", "F": None}, "answer": "B"},
    {"question": "q", "choices": {"label": [*FOUR], "text": [*FOUR.values()]}, "answerKey": "B"},
]


@pytest.mark.parametrize("row", EXAMS, ids=str)
def test_exam_rows_keep_their_choices(row):
    listed = "\n".join(f"{k}.{v}" for k, v in FOUR.items())
    question = f"下面是一道单选题，请选择正确的答案选项。\n问题：q\n\n{listed}"
    assert read(row) == [Conversation((Turn(question, "B.坏血病"),))]


@pytest.mark.parametrize("answer", ["AC", "A,C", "a、c", ["A", "C"], "Ａ Ｃ", ["夜盲症", "脚气病"]])
def test_exam_rows_may_have_several_answers(answer):
    [example] = read({"question": "q", "options": FOUR, "answer": answer})
    assert example.turns[0].answer == "A.夜盲症\nC.脚气病"


@pytest.mark.parametrize(
    ("row", "is_good"),
    [
        ({"prompt": "q", "response": "a", "label": True}, True),
        ({"prompt": "q", "response": "a", "label": False}, False),
        ({"instruction": "q", "output": "a", "kto_tag": False}, False),
        ({"messages": TALK, "label": 0}, False),
        ({"query": "q", "response": "a", "label": "true"}, True),
    ],
)
def test_a_judged_answer_is_no_plain_answer(row, is_good):
    assert read(row) == [UnpairedAnswer(Conversation((Turn("q", "a"),)), is_good)]


@pytest.mark.parametrize("label", [0, 1, "1", 1.0])
def test_a_label_that_may_be_a_category_is_not_taken_for_a_judgement(label):
    row = {"instruction": "q", "output": "a", "label": label}
    with pytest.raises(RowError, match=r"may judge the answer or be a category: write true or"):
        read(row)
    [judged] = read({"prompt": "q", "completion": "a", "label": label})
    assert judged == UnpairedAnswer(Conversation((Turn("q", "a"),)), label != 0)
    assert read({**row, "label": 2}) == [Conversation((Turn("q", "a"),))]


def thinking(text, thoughts):
    return [TALK[0], {"role": "assistant", "content": text, "reasoning_content": thoughts}]


PAIRS = [
    ({"chosen": thinking("a", "t"), "rejected": thinking("b", "u")}, ("t", "u")),
    ({"messages": TALK[:1], "chosen": thinking("a", "t")[1], "rejected": "b"}, ("t", "")),
    ({"messages": thinking("a", "t"), "rejected_response": "b"}, ("t", "")),
    ({"messages": TALK, "rejected_messages": thinking("b", "u")}, ("", "u")),
]


@pytest.mark.parametrize(("row", "reasonings"), PAIRS)
def test_reasoning_of_compared_answers_is_kept(row, reasonings):
    plain = Ranking(Conversation((Turn("q", ""),)), ("a", "b"), (0, 1))
    assert read(row) == [dataclasses.replace(plain, reasonings=reasonings)]
    assert read(row, drop_reasoning=True) == [plain]


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": answered(weight=0), "rejected": answered(content="b")},
        {"prompt": "q", "chosen": "a", "rejected": "b", "loss_mask": [1]},
    ],
)
def test_a_mask_on_a_compared_answer_is_refused_with_the_reason(row):
    with pytest.raises(RowError, match="comparing answers learns all of each: remove it"):
        read(row)


def test_a_number_that_is_an_index_and_another_choice_is_refused():
    row = {"question": "q", "options": [1, 2, 3, 4], "answer": 2}
    with pytest.raises(
        RowError, match=r"answer 2 is an index or the choice B\.2: write the letter"
    ):
        read(row)
    [example] = read({**row, "options": [0, 1, 2, 3]})
    assert example.turns[0].answer == "C.2"
    [example] = read({**row, "answer": "2"})
    assert example.turns[0].answer == "B.2"


def test_answers_that_differ_in_outer_spaces_are_no_pair():
    with pytest.raises(RowError, match="answers 1 and 2 are equal"):
        read({"prompt": "q", "chosen": "a", "rejected": "a \n"})


def test_another_label_is_a_category():
    assert read({**QA, "label": "内科"}) == [Conversation((Turn("q", "a"),))]


TWO = [*TALK, {"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    "row",
    [
        *(
            {"messages": [TWO[0], {**TWO[1], key: 0}, *TWO[2:]]}
            for key in ("weight", "loss", "train", "train_on_turn", "training", "loss_mask")
        ),
        {"messages": TWO, "loss_mask": [0, 0, 0, 1]},
        {"messages": TWO, "loss_mask": [False, True]},
        {"messages": [{"role": "system", "content": ""}, *TWO], "loss_mask": [0, 1]},
    ],
    ids=str,
)
def test_a_masked_answer_is_not_learned(row):
    [example] = read(row)
    assert [turn.is_learned for turn in example.turns] == [False, True]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": answered(reasoning_content="t")},
        {"messages": TALK, "reasoning_content": "t"},
        {**QA, "Complex_CoT": "t"},
        {**QA, "thinking": "t"},
    ],
    ids=str,
)
def test_reasoning_is_kept_apart_or_left_out_on_demand(row):
    assert read(row) == [Conversation((Turn("q", "a", reasoning="t"),))]
    assert read(row, drop_reasoning=True) == [Conversation((Turn("q", "a"),))]


CALLS = {
    "openai": [
        TALK[0],
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "found", "tool_call_id": "1"},
        TALK[1],
    ],
    "sharegpt": [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "search", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "found"},
        {"from": "gpt", "value": "a"},
    ],
}


@pytest.mark.parametrize("name", CALLS)
def test_tool_calls_keep_their_structure(name):
    row = {"messages": CALLS[name], "tools": [{"name": "search"}]}
    [example] = read(row)
    [step] = example.turns[0].steps
    [call] = step.calls
    assert (call.name, call.arguments, step.results) == ("search", '{"x": 1}', ("found",))
    assert example.tools == '[{"name": "search"}]' and example.turns[0].answer == "a"
    assert has_tools(example)


def test_offered_tools_are_kept_under_either_name():
    [example] = read({**QA, "functions": [{"name": "f"}]})
    assert example.tools == '[{"name": "f"}]'


def test_a_table_written_by_column_is_rows_not_a_dialogue():
    row = {"instruction": ["q", "r"], "input": ["", "i"], "output": ["a", "b"]}
    assert read(row) == [Conversation((Turn("q", "a"),)), Conversation((Turn("r\ni", "b"),))]


def test_a_system_prompt_under_another_name_is_read():
    assert read({**QA, "system_prompt": "s"}) == [Conversation((Turn("q", "a"),), "s")]
    turn = dataclasses.replace(read({"messages": TALK, "system_message": "s"})[0], system="")
    assert turn == read(QA)[0]


def test_a_text_that_a_row_repeats_changes_nothing():
    assert read({"prompt": "q", "prompt_id": "1", "messages": TALK}) == read(QA)
    assert read({"messages": TALK, "response": " a "}) == read(QA)
    with pytest.raises(RowError, match="'prompt' is another text of the conversation"):
        read({"prompt": "r", "messages": TALK})
