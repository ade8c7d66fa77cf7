"""Files in other encodings: read as UTF-8, with places in their own bytes."""

import gzip
import json

import pytest
import zstandard

from megatron_chimed.data.formats.row import RowError
from megatron_chimed.data.reading import expand_inputs, iter_blocks, row_block, rows_of
from megatron_chimed.data.reading.encodings import encoding_named, likely_encoding
from megatron_chimed.errors import ConfigError, DataError
from tests.unit.data.reading.corpora import table

ROWS = [
    {"question": "发热怎么办？", "answer": "多喝水，必要时到医院就诊。"},
    {"question": "孩子咳嗽三天了", "answer": "先看有没有痰，\n再决定用药。"},
    {"question": "血压140/90高吗", "answer": "偏高，建议复测。"},
]
TEXT = "高血压患者应当低盐饮食，定期测量血压，按时服药。\n" * 4
ENCODINGS = ("gb18030", "gbk", "big5", "utf-16", "utf-16-le", "utf-16-be")
LAYOUTS = {
    "jsonl": lambda: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
    "array": lambda: json.dumps(ROWS, ensure_ascii=False, indent=1),
    "csv": lambda: table(ROWS, ",").decode(),
    "tsv": lambda: table(ROWS, "\t").decode(),
}
TRADITIONAL = str.maketrans("发热么办饮压医时诊测议复药应当盐", "發熱麼辦飲壓醫時診測議複藥應當鹽")


def encoded(text, encoding):
    return (text.translate(TRADITIONAL) if encoding == "big5" else text).encode(encoding)


def read(path, encoding, **options):
    [entry] = expand_inputs([path], encoding=encoding, **options)
    return [row for block in iter_blocks([entry]) for row in rows_of(block, entry)]


@pytest.mark.parametrize("encoding", [name for name in ENCODINGS if name != "big5"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_the_same_in_every_encoding_and_places_are_those_of_the_file(
    tmp_path, layout, encoding
):
    text = LAYOUTS[layout]()
    (tmp_path / f"x.{layout}").write_bytes(text.encode(encoding))
    (tmp_path / f"y.{layout}").write_bytes(text.encode())
    found = read(tmp_path / f"x.{layout}", encoding)
    wanted = read(tmp_path / f"y.{layout}", "utf-8")
    assert [row for _, _, row in found] == [row for _, _, row in wanted] == ROWS
    assert [line for line, _, _ in found] == [line for line, _, _ in wanted]
    order = {"utf-16": "utf-16-le"}.get(encoding, encoding)
    skipped = 2 if encoding == "utf-16" else 0
    places = [skipped + len(text.encode()[:at].decode().encode(order)) for _, at, _ in wanted]
    assert [at for _, at, _ in found] == places


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
def test_compressed_text_in_small_blocks(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(row_block, "BLOCK_BYTES", 64)
    lines = [f"第{number}行：{'发热' * (number % 7)}" for number in range(100)]
    data = "\n".join(lines).encode("gb18030")
    (tmp_path / "x.txt").write_bytes(pack(data))
    found = read(tmp_path / "x.txt", "gb18030")
    assert [row for _, _, row in found] == lines
    for line, offset, row in found:
        assert data[offset:].startswith(row.encode("gb18030")) and lines[line - 1] == row


def test_a_byte_that_the_encoding_forbids_makes_one_row_bad(tmp_path):
    good = "多喝水，注意休息。".encode("gb18030")
    (tmp_path / "x.txt").write_bytes(good + b"\n" + good + b"\xff\x31\n" + good)
    found = read(tmp_path / "x.txt", "gb18030")
    assert [row for _, _, row in found[::2]] == ["多喝水，注意休息。"] * 2
    line, offset, error = found[1]
    assert isinstance(error, RowError) and (line, offset) == (2, len(good) + 1)
    assert str(error) == f"invalid gb18030: byte 0xFF at byte {len(good)} of the row"
    assert found[2][1] == 2 * len(good) + 4


def test_damage_and_long_rows_are_named_by_the_bytes_of_the_file(tmp_path):
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in ("短", "长" * 400, "短")]
    text = "[\n" + ",\n".join(rows)
    (tmp_path / "x.json").write_bytes(text.encode("utf-16-le"))
    [entry] = expand_inputs([tmp_path / "x.json"], encoding="utf-16-le")
    with pytest.raises(DataError, match=r"x\.json:\d:(\d+) \(line:byte\)") as caught:
        list(iter_blocks([entry]))
    assert int(str(caught.value).split(":")[2].split()[0]) % 2 == 0
    (tmp_path / "y.txt").write_bytes(f"短\n{'长' * 400}\n短".encode("gb18030"))
    [entry] = expand_inputs([tmp_path / "y.txt"], encoding="gb18030")
    blocks = list(iter_blocks([entry], max_row_bytes=300))
    places = [row[:2] for block in blocks for row in rows_of(block, entry)]
    assert (3, 2 + 1 + 800 + 1) in places


@pytest.mark.parametrize(
    ("encoding", "likely"),
    [
        *(("gb18030", "gb18030"), ("gbk", "gb18030"), ("big5", "big5"), ("utf-16", "utf-16")),
        *(("utf-16-le", "utf-16-le"), ("utf-16-be", "utf-16-be")),
    ],
)
@pytest.mark.parametrize("name", ["x.txt", "x.csv", "x.jsonl"])
def test_the_error_of_a_file_in_another_encoding_names_the_likely_one(
    tmp_path, name, encoding, likely
):
    text = {
        "x.txt": TEXT,
        "x.csv": "question,answer\n" + f"发热怎么办,{TEXT[:20]}\n" * 5,
        "x.jsonl": json.dumps({"text": TEXT}, ensure_ascii=False) + "\n",
    }[name]
    (tmp_path / name).write_bytes(encoded(text, encoding))
    with pytest.raises(DataError, match=rf"is not in utf-8.* Pass --encoding {likely},"):
        expand_inputs([tmp_path / name])


def test_a_wrong_flag_is_an_error_and_a_damaged_byte_is_not(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text(TEXT, encoding="utf-8")
    with pytest.raises(DataError, match=r"x\.txt is in UTF-8, not in gb18030"):
        expand_inputs([path], encoding="gb18030")
    path.write_bytes(TEXT.translate(TRADITIONAL).encode("big5"))
    with pytest.raises(DataError, match="is not in gb18030; .*Pass --encoding big5"):
        expand_inputs([path], encoding="gb18030")
    path.write_bytes("无".encode("utf-16-le"))
    with pytest.raises(DataError, match="no byte-order mark.*--encoding utf-16-le or utf-16-be"):
        expand_inputs([path], encoding="utf-16")
    path.write_bytes(TEXT.encode() + b"\xff\xfe\n")
    assert expand_inputs([path])[0].encoding == "utf-8"


def test_names_of_encodings():
    assert encoding_named("GBK") == encoding_named("gb2312") == "gb18030"
    assert encoding_named("UTF8") == "utf-8"
    with pytest.raises(ConfigError, match="'gb18080' is unknown. Did you mean gb18030?"):
        encoding_named("gb18080")
    for name in ("base64", "rot13"):
        with pytest.raises(ConfigError, match="is unknown"):
            encoding_named(name)
    with pytest.raises(ConfigError, match="cannot be read without all that comes before"):
        encoding_named("iso-2022-jp")


def test_latin_text_looks_like_no_chinese_encoding():
    assert likely_encoding("café résumé naïve œuvre façade".encode("cp1252")) is None
