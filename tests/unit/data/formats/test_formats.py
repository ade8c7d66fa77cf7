"""Each format: every shape of row it knows, and the reason for every row it refuses."""

import pytest

from megatron_chimed.data.formats.example import Conversation, Ranking, Text, Turn, example_text
from megatron_chimed.data.formats.registry import FORMATS, ReadOptions
from megatron_chimed.data.formats.row import RowError


def read(name, row, **options):
    return list(FORMATS[name].examples(row, ReadOptions(**options)))


def talk(*texts, system=""):
    return Conversation(tuple(map(Turn, texts[0::2], [*texts[1::2], ""])), system)


def message(role, text):
    return {"from": role, "value": text}


def chat(role, text):
    return {"role": role, "content": text}


PAIR = Ranking(talk("q"), ("good", "bad"), (0, 1))
SIDES = {"chosen": "good", "rejected": "bad"}
FOUR = {"A": "x", "B": "y", "C": "z", "D": "w"}
QUESTION = "下面是一道单选题，请选择正确的答案选项。\n问题：q\n\nA.x\nB.y"

READ = [
    ("text", "line ", [Text("line ")]),
    ("text", {"text": "", "id": 3}, [Text("")]),
    ("sharegpt", {"conversations": [message("human", "q"), message("gpt", "a")]}, [talk("q", "a")]),
    (
        "sharegpt",
        {
            "messages": [
                chat("system", "s"),
                *(chat("user", "q"), chat("assistant", "a"), chat("user", "r")),
                chat("assistant", "b"),
            ]
        },
        [talk("q", "a", "r", "b", system="s")],
    ),
    (
        "sharegpt",
        {"conversations": [message("user", "q"), message("assistant", "a")], "system": "s"},
        [talk("q", "a", system="s")],
    ),
    ("sharegpt_preference", {"conversations": [message("human", "q")], **SIDES}, [PAIR]),
    (
        "sharegpt_preference",
        {
            "conversations": [message("human", "p"), message("gpt", "a"), message("human", "q")],
            "chosen": message("gpt", "good"),
            "rejected": [message("gpt", "bad")],
        },
        [Ranking(talk("p", "a", "q"), ("good", "bad"), (0, 1))],
    ),
    (
        "sharegpt_preference",
        {
            "chosen": [chat("user", "q"), chat("assistant", "good")],
            "rejected": [chat("user", "q"), chat("assistant", "bad")],
        },
        [PAIR],
    ),
    (
        "sharegpt_preference",
        {
            "prompt": [chat("system", "s"), chat("user", "q")],
            "chosen": [chat("system", "s"), chat("user", "q"), chat("assistant", "good")],
            "rejected": [chat("system", "s"), chat("user", "q"), chat("assistant", "bad")],
        },
        [Ranking(talk("q", system="s"), ("good", "bad"), (0, 1))],
    ),
    (
        "sharegpt_preference",
        {"prompt": "q", "chosen": chat("assistant", "good"), "rejected": chat("assistant", "bad")},
        [PAIR],
    ),
    ("alpaca", {"instruction": "q", "output": "a"}, [talk("q", "a")]),
    ("alpaca", {"instruction": "", "input": "q", "output": "a", "history": None}, [talk("q", "a")]),
    (
        "alpaca",
        {
            **{"instruction": "q", "input": "i", "output": "a", "system": "s"},
            "history": [["p", "b"]],
        },
        [talk("p", "b", "q\ni", "a", system="s")],
    ),
    ("alpaca_preference", {"instruction": "q", "input": "", **SIDES}, [PAIR]),
    ("alpaca_preference", {"instruction": "q", "output": ["good", "bad"]}, [PAIR]),
    ("reward", {"question": "q", "response_chosen": "good", "response_rejected": "bad"}, [PAIR]),
    ("reward", {"prompt": "q", **SIDES}, [PAIR]),
    ("reward", {"question": "q", "system": "", **SIDES}, [PAIR]),
    ("reward", {"query": "q", "response": "good", "rejected_response": "bad"}, [PAIR]),
    (
        "sharegpt_preference",
        {
            "messages": [chat("system", "s"), chat("user", "q"), chat("assistant", "good")],
            "rejected_response": "bad",
        },
        [Ranking(talk("q", system="s"), ("good", "bad"), (0, 1))],
    ),
    (
        "sharegpt",
        {
            "messages": [
                {**chat("user", "q"), "loss": False},
                {**chat("assistant", "a"), "loss": 1},
            ],
            "rejected_response": None,
        },
        [talk("q", "a")],
    ),
    ("shennong", {"query": "q", "response": "a", "history": ""}, [talk("q", "a")]),
    ("qa", {"问": "q", "答": "a", "history": '[["p", "b"]]'}, [talk("p", "b", "q", "a")]),
    ("cmtmedqa", {"instruct": "  q ", "output": " a"}, [talk("q", "a")]),
    ("ziya", {"prompt": ["q", "r"], "output": ["a", "b"]}, [talk("q", "a", "r", "b")]),
    ("ziya", {"id": "1", "input": ["q"], "output": ["a"]}, [talk("q", "a")]),
    (
        "ziya",
        {"id": "", "instruction": ["q"], "input": "", "output": ["a"]},
        [talk("q", "a")],
    ),
    (
        "huatuo",
        {"questions": [["q", "r"], ["t"]], "answers": ["a", ["b"]]},
        [talk("q", "a"), talk("r", "a"), talk("t", "b")],
    ),
    ("huatuo", {"questions": ["q", "r"], "answers": ["a"]}, [talk("q", "a"), talk("r", "a")]),
    ("huatuo", {"questions": ["q", "r"], "answers": ["a", "b"]}, [talk("q", "a"), talk("r", "b")]),
    (
        "meddialog",
        {"dialogue_turns": {"speaker": [1, 0, 0, 1, 0], "utterance": ["x", "q", "r", "a", "y"]}},
        [talk("q\nr", "a")],
    ),
    (
        "meddialog",
        {"description": "d", "utterances": ["patient: q: r", "doctor: a", "病人：s", "医生:b"]},
        [talk("q: r", "a", "s", "b")],
    ),
    ("chunyu", "id\t1\r\nP\tq\tr\r\n\nD\ta\nD\tb\nP\tlost", [talk("q\tr", "a\nb")]),
    ("chimed", {"question": "q", "answer_1": "a", "answer_2": None}, [talk("q", "a")]),
    ("chimed", {"question": "q", "answer_1": "", "answer_2": "b"}, [talk("q", "b")]),
    ("chimed", {"question": "q", "answer_1": "a", "answer_2": "a"}, [talk("q", "a")]),
    ("safety_prompts", {"prompt": "q", "response": "a", "type": "t"}, [talk("q", "a")]),
    ("shennong", {"query": "q", "response": "a"}, [talk("q", "a")]),
    ("qa", {"问": "q", "答": "a"}, [talk("q", "a")]),
    ("qa", {"id": 1, "question": "q", "answer": "a", "label": "x"}, [talk("q", "a")]),
    (
        "ranking",
        {
            **{"prompt": "q", "responses": ["a", "b", "c"], "ranks": [3, -1, 3]},
            **{"history": [["p", "o"]], "system": "s", "margins": [0, 2.5, 0]},
        },
        [Ranking(talk("p", "o", "q", system="s"), ("a", "b", "c"), (1, 0, 1), (0.0, 2.5, 0.0))],
    ),
    (
        "zhongjing_labels",
        {"id": "1", "query": "q", "history": "[]", "rank1": "a", "rank10": "c", "rank2": "b"},
        [Ranking(talk("q"), ("a", "b", "c"), (0, 1, 2))],
    ),
    (
        "choice",
        {"text": "q", "choice": ["x", "y"], "label": 0},
        [talk(QUESTION, "A.x")],
    ),
    (
        "medqa",
        {"question": "q", "options": {"B": "y", "A": "x"}, "answer": "y", "answer_idx": "B"},
        [talk(QUESTION, "B.y")],
    ),
    (
        "cmexam",
        {"Question": "q", "Options": "A x\n\nB．y\n", "Answer": " b ", "Explanation": ""},
        [talk(QUESTION, "B.y")],
    ),
    (
        "cmexam",
        {"Question": "q", "Options": "A x\nmore\nB y", "Answer": "BA"},
        [talk(QUESTION.replace("单", "多").replace("x", "x\nmore"), "B.y\nA.x\nmore")],
    ),
    (
        "choice",
        {"type": "医学", "text": "q", "choice": ["x", "y"], "label": 1},
        [talk(QUESTION.replace("一道", "一道关于医学的"), "B.y")],
    ),
    (
        "cmmlu",
        {**FOUR, "question": "q", "answer": "D", "E": ""},
        [talk(QUESTION + "\nC.z\nD.w", "D.w")],
    ),
]


@pytest.mark.parametrize(("name", "row", "examples"), READ)
def test_every_shape_is_recognised_and_read(name, row, examples):
    first = next(entry.name for entry in FORMATS.values() if entry.fits(row))
    assert first == name
    assert read(name, row) == examples


BAD = [
    ("text", {"body": "x"}, r"no key 'text' \(keys: 'body'\); pass the key of plain"),
    ("text", {}, r"no key 'text' \(keys: none\)"),
    ("text", {"text": 5}, "'text' is of type int, not a text"),
    ("text", {"text": None}, "'text' is of type NoneType, not a text"),
    ("sharegpt", {"conversations": [message("human", "q")]}, "ends with a question: no answer"),
    ("sharegpt", {"conversations": []}, "the conversation has no turn"),
    ("sharegpt", {"conversations": [message("gpt", "a")]}, "assistant where user was"),
    ("sharegpt", {"conversations": [message("human", "q")] * 2}, "user where assistant was"),
    ("sharegpt", {"conversations": [message("nurse", "q")]}, "message 1 has role 'nurse'; known"),
    ("sharegpt", {"conversations": [message("tool", "q")]}, "role tool where user was expected"),
    ("sharegpt", {"conversations": [{"value": "q"}]}, "message 1 is not .*: 'value'"),
    ("sharegpt", {"conversations": ["q"]}, "message 1 is not .*: str"),
    ("sharegpt", {"conversations": [message("human", None)]}, "'message 1' is of type NoneType"),
    ("sharegpt", {"text": "q"}, "no key 'conversations'"),
    (
        "sharegpt",
        {"conversations": [message("human", " "), message("gpt", "a")]},
        "^no question$",
    ),
    (
        "sharegpt",
        {
            "conversations": [
                *(message(r, "x") for r in ("human", "gpt", "human")),
                message("gpt", ""),
            ]
        },
        "no answer in turn 2",
    ),
    (
        "sharegpt_preference",
        {"conversations": [message("human", "q")], "chosen": "a", "rejected": "a"},
        "answers 1 and 2 are equal",
    ),
    (
        "sharegpt_preference",
        {"conversations": [message("human", "q"), message("gpt", "a")], **SIDES},
        "no question",
    ),
    (
        "sharegpt_preference",
        {"chosen": [chat("user", "q")], "rejected": [chat("user", "q")]},
        "'chosen' does not end with an answer",
    ),
    (
        "sharegpt_preference",
        {
            "chosen": [chat("user", "q"), chat("assistant", "a")],
            "rejected": [chat("user", "r"), chat("assistant", "b")],
        },
        "chosen and rejected answer different prompts",
    ),
    (
        "sharegpt",
        {"messages": [chat("user", "q"), {**chat("assistant", "a"), "weight": 0}]},
        "no answer is learned: all are masked",
    ),
    (
        "sharegpt",
        {"messages": [chat("user", "q"), {**chat("assistant", "a"), "loss": False}]},
        "no answer is learned: all are masked",
    ),
    (
        "sharegpt",
        {
            "messages": [chat("system", "s"), chat("user", "q"), chat("assistant", "a")],
            "system": "t",
        },
        "two system prompts",
    ),
    (
        "sharegpt",
        {"messages": [chat("user", "q"), chat("assistant", "a")], "images": ["x.png"]},
        "'images' belongs to the prompt but cannot be used: texts only",
    ),
    (
        "sharegpt_preference",
        {"messages": [chat("user", "q")], "rejected_response": "bad"},
        "'messages' does not end with an answer",
    ),
    (
        "qa",
        {"问": "q", "答": "a", "rejected_response": "b"},
        "'rejected_response' compares answers",
    ),
    ("alpaca", {"instruction": "q", "output": "a", "kto_tag": "x"}, "'kto_tag' is 'x', neither"),
    ("alpaca", {"instruction": "q", "output": "a", "history": 5}, "'history' is of type int, not"),
    ("alpaca", {"instruction": "q", "output": "a", "history": 0}, "'history' is of type int, not"),
    ("alpaca", {"instruction": "q", "output": "a", "history": "痛"}, "not a JSON list .*: '痛'"),
    (
        "alpaca",
        {"instruction": "q", "output": "a", "history": "5"},
        "'history' is of type int, not",
    ),
    ("alpaca", {"instruction": "q"}, "no key 'output'"),
    ("alpaca", {"instruction": "q", "output": "  "}, "^no answer$"),
    ("alpaca", {"instruction": "", "input": None, "output": "a"}, "no question"),
    ("alpaca", {"instruction": "q", "output": "a", "history": [["p"]]}, "history entry 1 is not"),
    (
        "alpaca",
        {"instruction": "q", "output": "a", "history": [["p", 1]]},
        "'history entry 1' is of type int",
    ),
    (
        "alpaca",
        {"instruction": "q", "output": "a", "history": [["p", ""]]},
        "no answer in turn 1",
    ),
    ("alpaca_preference", {"instruction": "q", "output": ["a"]}, "'output' has 1 entries"),
    ("alpaca_preference", {"instruction": "q", "chosen": "a", "rejected": ""}, "answer 2 is empty"),
    ("reward", {"question": "q", "chosen": "a"}, "no key 'response_chosen'"),
    ("cmtmedqa", {"instruct": " ", "output": "a"}, "no question"),
    ("ziya", {"prompt": ["q"], "output": []}, "1 entries in 'prompt', 0 in 'output'"),
    ("ziya", {"prompt": [], "output": []}, "the conversation has no turn"),
    ("ziya", {"prompt": [1], "output": ["a"]}, "'prompt' is of type int"),
    ("ziya", {"prompt": "q", "output": "a"}, "'prompt' is of type str, not a list"),
    ("huatuo", {"questions": [["q"]], "answers": ["https://x"]}, "the answer is a link"),
    ("huatuo", {"questions": [["q"]], "answers": ["a", "b"]}, "1 entries in 'questions', 2 in"),
    ("huatuo", {"questions": [["q"]], "answers": [["a", "b"]]}, "a question with 2 answers"),
    ("huatuo", {"questions": [], "answers": []}, "no question"),
    ("meddialog", {"utterances": ["病人：q"]}, "no utterance of the patient is"),
    ("meddialog", {"utterances": ["q"]}, "does not start with its speaker: 'q'"),
    ("meddialog", {"dialogue_turns": [{"speaker": 2, "utterance": "q"}]}, "unknown speaker 2"),
    ("meddialog", {"dialogue_turns": [{"speaker": [], "utterance": "q"}]}, "unknown speaker"),
    ("meddialog", {"dialogue_turns": ["q"]}, "not a list of {speaker, utterance}"),
    (
        "meddialog",
        {"dialogue_turns": {"speaker": [0], "utterance": []}},
        "1 speakers for 0 utterances",
    ),
    ("chunyu", "id\t1\nD\tx", "followed by one of the doctor: no answer"),
    ("chunyu", "id\t1\nP\tx\nQ\ty", "a line does not start with id, P or D and a tab: 'Q"),
    ("chunyu", {"text": "x"}, "not a dialogue"),
    ("cmmlu", {**FOUR, "question": "q", "answer": ""}, "no answer"),
    ("cmmlu", {**FOUR, "question": "q", "answer": "E"}, "'E' is not one of the"),
    ("cmmlu", {**FOUR, "question": "q", "answer": "AA"}, "'AA' is not one of"),
    ("medqa", {"question": "q", "options": [], "answer_idx": "A"}, "'options' is not an object"),
    ("cmexam", {"Question": "q", "Options": "A x", "Answer": "nan"}, "no answer"),
    ("cmexam", {"Question": "q", "Options": "A x", "Answer": None}, "no answer"),
    ("cmexam", {"Question": "q", "Options": "x", "Answer": "A"}, "does not start with a letter"),
    ("choice", {"text": "q", "choice": ["x"], "label": 1}, "'label' 1 is not an index of 'choice'"),
    ("choice", {"text": "q", "choice": ["x"], "label": True}, "'label' True is not an index"),
    ("chimed", {"question": "q", "answer_1": "", "answer_2": " "}, "no answer"),
    ("qa", {"question": "q", "answer": ""}, "no answer"),
    ("qa", {"question": "q"}, "no key 'answer'"),
    ("ranking", {"prompt": "q", "responses": ["a"], "ranks": [0]}, "a single answer"),
    ("ranking", {"prompt": "q", "responses": [], "ranks": []}, "no answer|a single answer"),
    ("ranking", {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 1]}, "the same rank"),
    ("ranking", {"prompt": "q", "responses": ["a", "b"], "ranks": [0]}, "must hold 2 integers"),
    (
        "ranking",
        {"prompt": "q", "responses": ["a", "b"], "ranks": [0, 1.5]},
        "must hold 2 integers",
    ),
    (
        "ranking",
        {"prompt": "q", "responses": ["a", "b"], "ranks": [0, 1], "margins": [1]},
        "'margins' must hold 2 numbers",
    ),
    (
        "zhongjing_labels",
        {"query": "q", "history": "[[", "rank1": "a", "rank2": "b"},
        "'history' is not a list",
    ),
    (
        "zhongjing_labels",
        {"query": "q", "history": "__import__('os')", "rank1": "a", "rank2": "b"},
        "'history' is not a list",
    ),
]


@pytest.mark.parametrize(("name", "row", "reason"), BAD)
def test_a_row_that_does_not_fit_is_refused_with_the_reason(name, row, reason):
    with pytest.raises(RowError, match=reason):
        read(name, row)


def test_another_key_of_the_text():
    assert read("text", {"body": "x", "text": "y"}, text_key="body") == [Text("x")]


def test_the_text_of_an_example_has_all_its_parts():
    assert example_text(Text("x\n")) == "x\n"
    assert example_text(talk("q", "a", "r", "b", system="s")) == "s\nq\na\nr\nb"
    assert example_text(Ranking(talk("q", system="s"), ("a", "b"), (1, 0))) == "s\nq\na\nb"
