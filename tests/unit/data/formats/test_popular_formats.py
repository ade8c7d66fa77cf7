"""Shapes of popular public sets: what each becomes, and why a row of one is refused."""

import json

import pytest

from megatron_chimed.data.formats.example import Ranking
from megatron_chimed.data.formats.registry import detect_format
from megatron_chimed.data.formats.row import RowError
from megatron_chimed.data.reading import examples_of, expand_inputs, format_of, iter_blocks
from tests.unit.data.formats.test_formats import chat, read, talk

CHOICES = {"opa": "x", "opb": "y", "opc": "z", "opd": "w"}
EXAM = "下面是一道单选题，请选择正确的答案选项。\n问题：q\n\nA.x\nB.y\nC.z\nD.w"
PAIR = Ranking(talk("q"), ("good", "bad"), (0, 1))


def moss_turn(human, moss, **parts):
    turn = {"Human": f"<|Human|>: {human}<eoh>\n", "MOSS": f"<|MOSS|>: {moss}<eom>\n"}
    for name in ("Inner Thoughts", "Commands", "Tool Responses"):
        turn[name] = f"<|{name}|>: {parts.get(name[:5], 'None')}<eoc>\n"
    return turn


def hh(*texts):
    pairs = zip(("Human", "Assistant") * 4, texts, strict=False)
    return "".join(f"\n\n{name}: {text}" for name, text in pairs)


READ = [
    (
        "sharegpt",
        {"_id": "1", "source": "x", "conversation": [chat("user", "q"), chat("assistant", "a")]},
        [talk("q", "a")],
    ),
    ("huatuogpt", {"data": ["问：q", "答：a", "问:r", "答: b"]}, [talk("q", "a", "r", " b")]),
    ("huatuogpt", {"data": ["<问>：q", "<答>：a"]}, [talk("q", "a")]),
    ("ultrachat", {"id": "7", "data": ["q", "a", "r", "b"]}, [talk("q", "a", "r", "b")]),
    (
        "title_ask",
        {"department": "内科", "title": "t", "ask": "q", "answer": "a"},
        [talk("t\nq", "a")],
    ),
    ("title_ask", {"title": "q", "ask": "full q", "answer": "a"}, [talk("full q", "a")]),
    ("title_ask", {"title": "t", "ask": "无", "answer": "a"}, [talk("t", "a")]),
    ("medical_o1", {"Question": "q", "Response": "a"}, [talk("q", "a")]),
    ("medmcqa", {"question": "q", **CHOICES, "cop": 0, "exp": None}, [talk(EXAM, "A.x")]),
    ("medmcqa", {"question": "q", **CHOICES, "cop": "2"}, [talk(EXAM, "C.z")]),
    ("medmcqa_from_1", {"question": "q", **CHOICES, "cop": 4}, [talk(EXAM, "D.w")]),
    (
        "pubmedqa",
        {"question": "q", "context": {"contexts": ["c", "d"]}, "long_answer": "a"},
        [talk("c\n\nd\n\nq", "a")],
    ),
    (
        "pubmedqa",
        {"question": "q", "context": "c", "long_answer": "a", "final_decision": "no"},
        [talk("c\n\nq", "no\na")],
    ),
    ("prompt_completion", {"prompt": "q", "completion": "a"}, [talk("q", "a")]),
    (
        "prompt_completion",
        {
            "prompt": [chat("system", "s"), chat("user", "q")],
            "completion": [chat("assistant", "a")],
        },
        [talk("q", "a", system="s")],
    ),
    ("firefly", {"kind": "NLI", "input": "q", "target": "a"}, [talk("q", "a")]),
    (
        "firefly_chat",
        {"conversation": [{"human": "q", "assistant": "a"}, {"human": "r", "assistant": "b"}]},
        [talk("q", "a", "r", "b")],
    ),
    (
        "open_orca",
        {"id": "1", "system_prompt": "s", "question": "q", "response": "a"},
        [talk("q", "a", system="s")],
    ),
    (
        "moss",
        {
            "meta_instruction": "s\n",
            "chat": {
                "turn_2": moss_turn("r", "b"),
                "turn_1": moss_turn("q", "a"),
                **{f"turn_{place}": moss_turn(str(place), "x") for place in range(3, 11)},
            },
        },
        [
            talk(
                *("q", "a", "r", "b"),
                *(text for place in range(3, 11) for text in (str(place), "x")),
                system="s",
            )
        ],
    ),
    (
        "moss",
        {
            "prefix": "s",
            "plain_text": "[Human]: q<eoh> [MOSS]: a\nb<eoa>\n[Human]: r<eoh> [MOSS]: c<eoa>",
        },
        [talk("q", "a\nb", "r", "c", system="s")],
    ),
    ("dolly", {"instruction": "q", "context": "", "response": "a"}, [talk("q", "a")]),
    ("dolly", {"instruction": "q", "context": "c", "response": "a"}, [talk("q\nc", "a")]),
    ("input_output", {"input": "q", "output": "a"}, [talk("q", "a")]),
    (
        "sharegpt",
        {
            "messages": [
                chat("user", [{"type": "text", "text": "q"}, {"type": "text", "text": "r"}]),
                chat("assistant", [{"type": "text", "text": "a"}]),
            ]
        },
        [talk("qr", "a")],
    ),
    ("hh_rlhf", {"chosen": hh("q", "good"), "rejected": hh("q", "bad")}, [PAIR]),
    (
        "hh_rlhf",
        {"chosen": hh("p", "o", "q\n\nmore", "good"), "rejected": hh("p", "o", "q\n\nmore", "bad")},
        [Ranking(talk("p", "o", "q\n\nmore"), ("good", "bad"), (0, 1))],
    ),
    ("hh_rlhf", {"prompt": hh("q", ""), "chosen": " good", "rejected": " bad"}, [PAIR]),
    (
        "hh_rlhf",
        {"prompt": hh("q", ""), "chosen": hh("q", "good"), "rejected": hh("q", "bad")},
        [PAIR],
    ),
    (
        "message_pairs",
        {
            "chosen_messages": [chat("user", "q"), chat("assistant", "good")],
            "rejected_messages": [chat("user", "q"), chat("assistant", "bad")],
        },
        [PAIR],
    ),
    (
        "message_pairs",
        {
            "messages": [chat("system", "s"), chat("user", "q"), chat("assistant", "good")],
            "rejected_messages": [
                *(chat("system", "s"), chat("user", "q"), chat("assistant", "bad")),
            ],
        },
        [Ranking(talk("q", system="s"), ("good", "bad"), (0, 1))],
    ),
]


@pytest.mark.parametrize(("name", "row", "examples"), READ)
def test_a_row_becomes_its_examples_and_is_detected(name, row, examples):
    assert detect_format([row], "x").name == name
    assert read(name, row) == examples


BAD = [
    ("huatuogpt", {"data": ["问：q", "a"]}, "entry 2 of 'data' does not start with 答："),
    ("ultrachat", {"data": ["q", "a", "r"]}, "ends with a question"),
    ("ultrachat", {"data": ["q", 5]}, "'data' is of type int"),
    ("title_ask", {"title": "无", "ask": "", "answer": "a"}, "no question"),
    ("medmcqa", {"question": "q", **CHOICES, "cop": -1}, "no answer"),
    ("medmcqa", {"question": "q", **CHOICES, "cop": 4}, "'cop' is 4, not a number from 0 to 3"),
    ("medmcqa_from_1", {"question": "q", **CHOICES, "cop": 0}, "from 1 to 4"),
    ("pubmedqa", {"question": "q", "context": 5, "long_answer": "a"}, "'context' is neither"),
    ("pubmedqa", {"question": "q", "context": "c", "long_answer": ""}, "no answer"),
    ("prompt_completion", {"prompt": "q", "completion": ""}, "no answer|ends with a question"),
    ("prompt_completion", {"prompt": [chat("user", "q")], "completion": 1}, "of type int"),
    ("firefly_chat", {"conversation": [{"human": "q"}]}, "entry 1 of 'conversation' is not"),
    ("moss", {"chat": {"turn_1": moss_turn("q", "a", Comma="Search(x)")}}, "'Commands': tools"),
    ("moss", {"chat": {"first": {}}}, "'chat' is not an object of turn_1"),
    ("moss", {"plain_text": "[Human]: q<eoh> and [MOSS]: a<eoa>"}, "'plain_text' has 'and"),
    (
        "sharegpt",
        {"messages": [chat("user", [{"type": "image_url"}]), chat("assistant", "a")]},
        "message 1 has a part of type 'image_url': only texts",
    ),
    ("sharegpt", {"messages": [chat("user", ["q"]), chat("assistant", "a")]}, "type 'str'"),
    ("hh_rlhf", {"chosen": hh("q", "a"), "rejected": hh("r", "b")}, "different prompts"),
    ("hh_rlhf", {"chosen": hh("q", "a"), "rejected": hh("q", "b", "r")}, "does not end with an"),
    ("hh_rlhf", {"chosen": hh("q", "a"), "rejected": "b"}, "does not start with Human:"),
]


@pytest.mark.parametrize(("name", "row", "reason"), BAD)
def test_a_row_is_refused_with_the_reason(name, row, reason):
    with pytest.raises(RowError, match=reason):
        read(name, row)


def test_the_first_rows_of_medmcqa_say_where_its_numbers_start():
    rows = [{"question": "q", **CHOICES, "cop": cop} for cop in (1, 2, 3)]
    assert detect_format(rows, "x").name == "medmcqa"
    assert detect_format([*rows, {**rows[0], "cop": 0}], "x").name == "medmcqa"
    assert detect_format([*rows, {**rows[0], "cop": 4}], "x").name == "medmcqa_from_1"


ORIGINAL = {
    "QUESTION": "Is it so?",
    "CONTEXTS": ["First.", "Second."],
    "LABELS": ["METHODS", "RESULTS"],
    "MESHES": ["Adult"],
    "YEAR": "2010",
    "reasoning_required_pred": "yes",
    "reasoning_free_pred": "yes",
    "final_decision": "yes",
    "LONG_ANSWER": "It is.",
}
MEMBERS = {
    "pubmedqa": (ORIGINAL, talk("First.\n\nSecond.\n\nIs it so?", "yes\nIt is.")),
    "medqa": ({"question": "q", "options": {"A": "x", "B": "y"}, "answer_idx": "B"}, None),
    "qa": ({"question": "q", "answer": "a"}, talk("q", "a")),
}


@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("name", MEMBERS)
def test_an_object_of_rows_by_id_is_its_rows(tmp_path, name, indent):
    """PubMedQA's own files are such an object, with a PMID per question."""
    row, example = MEMBERS[name]
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"21645374": row, "\u4e8c": row}, indent=indent) + "\n")
    [entry] = expand_inputs([path])
    kind = format_of(entry)
    assert (entry.container, kind.name) == ("members", name)
    found = [row for b in iter_blocks([entry]) for _, _, row in examples_of(b, entry, kind)]
    assert len(found) == 2 and found[0] == found[1]
    assert example is None or list(found[0]) == [example]


@pytest.mark.parametrize("layout", ["keyed", "array", "jsonl"])
def test_rows_that_are_lists_of_strings_are_conversations(tmp_path, layout):
    """HuatuoGPT-II: an object of sets, each a list of conversations."""
    rows = [["q", "a"], ["r", "b", "s", "c"]]
    texts = {
        "keyed": json.dumps({"SFT_data": rows}),
        "array": json.dumps(rows, indent=1),
        "jsonl": "".join(json.dumps(row) + "\n" for row in rows),
    }
    path = tmp_path / "x.json"
    path.write_text(texts[layout])
    [entry] = expand_inputs([path])
    kind = format_of(entry)
    assert (entry.container, kind.name) == (layout, "ultrachat")
    found = [row for b in iter_blocks([entry]) for _, _, row in examples_of(b, entry, kind)]
    assert [list(row) for row in found] == [[talk("q", "a")], [talk("r", "b", "s", "c")]]
