"""cMedQA2: rows that refer to texts in two tables beside them."""

import pytest

from megatron_chimed.data.formats.example import Ranking
from megatron_chimed.data.formats.row import RowError
from megatron_chimed.errors import DataError
from tests.unit.data.formats.test_formats import FORMATS, read, talk


def test_cmedqa2_tables_are_joined_by_number(folder):
    one = Ranking(talk('q, "7"\nnext'), ("长\n答", "a1"), (0, 1))
    rows = {
        ("question_id", "7", "pos_ans_id", "4", "neg_ans_id", "1"): [one],
        ("ans_id", "2", "question_id", "9", "content", "own"): [talk("q9", "own")],
        ("question_id", "7", "ans_id", "2", "cnt", "3", "label", "1"): [talk('q, "7"\nnext', "a2")],
        ("question_id", "7", "ans_id", "2", "cnt", "3", "label", "0"): [],
    }
    for row, examples in rows.items():
        row = dict(zip(row[0::2], row[1::2], strict=True))
        assert FORMATS["cmedqa2"].fits(row)
        assert read("cmedqa2", row, folder=folder) == examples


def test_cmedqa2_errors_name_the_table(folder, tmp_path):
    row = {"ans_id": "2", "question_id": "8", "content": "a"}
    with pytest.raises(RowError, match=r"question_id 8 is not in .*question\.csv"):
        read("cmedqa2", row, folder=folder)
    for number in ("x", "9" * 5000, "-1", "²"):
        with pytest.raises(RowError, match=f"'question_id' is '{number}', not a number"):
            read("cmedqa2", {**row, "question_id": number}, folder=folder)
    with pytest.raises(DataError, match=r"does not exist: cMedQA2 rows refer to texts"):
        read("cmedqa2", row, folder=tmp_path / "elsewhere")
    with pytest.raises(DataError, match="this table has questions only. Pass answer.csv"):
        read("cmedqa2", {"question_id": "7", "content": "q"}, folder=folder)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "question.csv").write_text("id,content\n7,q\n")
    with pytest.raises(DataError, match=r"question.csv has columns \['id', 'content'\], not"):
        read("cmedqa2", row, folder=tmp_path / "bad")


@pytest.mark.parametrize("rest", [b"7x,q\n", b"\xff,q\n", b"\n", b""])
def test_cmedqa2_tables_that_are_none_are_errors(tmp_path, rest):
    (tmp_path / "question.csv").write_bytes(b"content,question_id\n" + rest)
    row = {"ans_id": "2", "question_id": "7", "content": "a"}
    message = "is not a table of numbers and texts" if rest else "question_id 7 is not in"
    with pytest.raises(DataError, match=message):
        read("cmedqa2", row, folder=tmp_path)


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16-le", "big5"])
@pytest.mark.parametrize("table", ["gb18030", "utf-16", "big5", "utf-8"])
def test_cmedqa2_tables_may_be_in_the_encoding_of_the_command(tmp_path, encoding, table):
    if table != "utf-8" and table[:5] != encoding[:5]:
        return
    text = 'question_id,content\n7,"發熱三天，\n怎麼辦"\n9,q9\n'
    (tmp_path / "question.csv").write_bytes(text.encode(table))
    row = {"ans_id": "2", "question_id": "7", "content": "a"}
    found = read("cmedqa2", row, folder=tmp_path, encoding=encoding)
    assert found == [talk("發熱三天，\n怎麼辦", "a")]


def test_cmedqa2_tables_in_another_encoding_name_the_flag(tmp_path):
    (tmp_path / "question.csv").write_bytes("question_id,content\n7,发热\n".encode("gb18030"))
    row = {"ans_id": "2", "question_id": "7", "content": "a"}
    with pytest.raises(DataError, match="pass --encoding if it is in another one"):
        read("cmedqa2", row, folder=tmp_path)
