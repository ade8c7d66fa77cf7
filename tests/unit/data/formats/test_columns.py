"""Own data without code: columns are named on the command line."""

import json

import pytest

from megatron_chimed.data.formats.columns import column_map
from megatron_chimed.data.formats.example import Conversation, Ranking, Text
from megatron_chimed.data.formats.row import RowError
from megatron_chimed.data.preprocessing.plan import PreprocessConfig
from megatron_chimed.data.reading import examples_of, expand_inputs, format_of, iter_blocks
from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.workflow.preparation import _option_words
from tests.unit.data.formats.test_formats import chat, talk


def read(path, *words):
    [entry] = expand_inputs([path], column_map=column_map(words))
    kind = format_of(entry)
    return [
        example
        for block in iter_blocks([entry])
        for _, _, row in examples_of(block, entry, kind)
        for example in ([row] if isinstance(row, RowError) else row)
    ]


PAIR = Ranking(talk("q"), ("good", "bad"), (0, 1))
CASES = [
    ("text=正文", {"正文": "x"}, Text("x")),
    ("question=题目,answer=解答", {"题目": "q", "解答": "a"}, talk("q", "a")),
    (
        "question=题目,input=补充,answer=解答,system=角色,history=前文",
        {"题目": "q", "补充": "i", "解答": "a", "角色": "s", "前文": [["p", "o"]]},
        Conversation(talk("p", "o", "q\ni", "a").turns, "s"),
    ),
    (
        "question=q.title,answer=q.replies.0",
        {"q": {"title": "q", "replies": ["a"]}},
        talk("q", "a"),
    ),
    ("question=x.y,answer=z", {"x.y": "q", "z": "a", "x": {"y": "no"}}, talk("q", "a")),
    ("question=a,answer=b", {"a": "q", "b": "a", "question": "no"}, None),
    ("question=问,chosen=好,rejected=坏", {"问": "q", "好": "good", "坏": "bad"}, PAIR),
    (
        "question=问,responses=答案,ranks=名次",
        {"问": "q", "答案": ["good", "bad"], "名次": [0, 1]},
        PAIR,
    ),
    (
        "messages=对话",
        {"对话": [chat("user", "q"), chat("assistant", "a")]},
        talk("q", "a"),
    ),
    (
        "messages=d,chosen=好,rejected=坏",
        {"d": [chat("user", "q")], "好": "good", "坏": "bad"},
        PAIR,
    ),
]


@pytest.mark.parametrize(("words", "row", "example"), CASES)
def test_columns_make_the_row_of_a_format(tmp_path, words, row, example):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    [found] = read(path, words)
    if example is None:
        assert isinstance(found, RowError) and "'question'" in str(found)
    else:
        assert found == example


def test_a_table_is_recognised_by_the_columns(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('编号,题目,"解,答"\n1,q,a\n', encoding="utf-8")
    assert read(path, "question=题目", "answer=解,答") == [talk("q", "a")]
    with pytest.raises(DataError, match=r"there is no column '题木'\. Did you mean question=题目"):
        read(path, "question=题木,answer=编号")


def test_a_column_that_no_row_has_is_an_error_and_one_missing_row_is_bad(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"title": "q", "reply": {"text": "a"}}\n{"title": "q"}\n', encoding="utf-8")
    with pytest.raises(
        DataError, match="no column 'tittle'. Did you mean question=title.* Its col"
    ):
        read(path, "question=tittle,answer=reply.text")
    with pytest.raises(DataError, match="Did you mean answer=reply.text"):
        read(path, "question=title,answer=reply.txt")
    _, bad = read(path, "question=title,answer=reply.text")
    assert "no column 'reply.text' for answer" in str(bad)
    path = tmp_path / "x.txt"
    path.write_text("plain\n", encoding="utf-8")
    with pytest.raises(DataError, match="lines of text, which have no columns"):
        read(path, "text=x")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["qestion=a"], "'qestion' is not a role. Did you mean question"),
        (["question"], "'question' is not ROLE=COLUMN"),
        (["question=a,question=b"], "question is given twice"),
        (["question="], "question has no column"),
        (["question=a"], "names question, which make no row. Name one of: text; question, answer"),
        (["text=a,answer=b"], "make no row"),
    ],
)
def test_wrong_columns_are_errors_of_the_command(words, message):
    with pytest.raises(ConfigError, match=message):
        column_map(words)


def test_columns_of_a_declared_workflow_are_a_mapping():
    options = {"columns": {"question": "题目", "answer": "解答"}}
    assert list(_option_words(options, frozenset())) == [
        "--columns",
        "question=题目",
        "answer=解答",
    ]


def test_columns_decide_alone_and_stand_in_the_command():
    basic = {"inputs": ("x",), "tokenizer": "t", "output_prefix": "p", "columns": ("text=a",)}
    with pytest.raises(ConfigError, match="--format has no effect with --columns"):
        PreprocessConfig(**basic, format="qa")
    command = PreprocessConfig(**basic, encoding="gb18030").command()
    assert "--columns text=a --encoding gb18030" in command
