"""Normalisation keeps the meaning of medical text, and reports its changes."""

import re
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_chimed.data.cleaning.normalize import normalize

ROUND_TRIP = (
    "体温38.5℃，最高 39.2°C，101.3℉",
    "血药浓度 12.5μg/mL（微克，希腊字母）与 12.5µg/mL（微符号）",
    "空腹血糖 6.1mmol/L，HbA1c 6.5%，肌酐 88µmol/L",
    "SpO₂≥95%，eGFR≤60，pH 7.35～7.45，5±0.3，≠、≈、＜、∞、Δ",
    "白细胞 11.2×10⁹/L，血小板 2.5×10^5/μL，1:160 与 1：160",
    "阿莫西林 0.5mg×2次，每次1片，0.25g*24粒，5%葡萄糖 250ml",
    "½片、¼支、①②③、Ⅱ型、ⅲ度、㎎、㎖、㎏、㏄、㎡、‰",
    "HBsAg（＋）、抗-HBc（－）、Rh（D）：阳性；（±）",
    "H₂O、CO₂、Ca²⁺、Na⁺、HCO₃⁻、β₂-受体、α-干扰素、γ-GT、ΔP",
    "“引号”、‘单引号’、——、……、《书名》、【注】、「引」、、；：？！～",
    "上午8：30服药；忌辛辣，多饮水！",
    "37.2℃～38.5℃，120/80mmHg，10-15cmH₂O，1.73m²",
    "👨‍👩‍👧 和 👍🏽",
    "A. 选项一\n\n  B. 缩进\n\tC. 制表\t列",
    "䶮、𠮷、㕮咀、𬌗",
)


@pytest.mark.parametrize("text", ROUND_TRIP)
def test_medical_text_is_kept_to_the_byte(text):
    assert normalize(text) == (text, [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("每次０．５ｍｇ×２次", "每次0.5mg×2次"),
        ("５％葡萄糖，１－２ｍｇ／ｋｇ，Ｐ＜０．０５", "5%葡萄糖，1-2mg/kg，P<0.05"),
        ("ＨＢｓＡｇ（＋），ＡＬＴ＋＋＋", "HBsAg（＋），ALT+++"),
        ("滴度１：１６０，共１，０００份", "滴度1：160，共1，000份"),
        ("e\u0301 A\u030a \u212b \u2126", "é Å Å Ω"),
        ("零\u200b宽\ufeff 软\u00ad连 方\u202e向", "零宽 软连 方向"),
        ("中\u200d文 \u200cA\u200d\u200dB", "中文 AB"),
        ("e\u200b\u0301", "é"),
        ("坏\x00字\x07符\x9f", "坏字符"),
        ("一\r\n二\r三\u2028四\x0b五", "一\n二\n三\n四\n五"),
        (
            "\u3000\u3000首行\u3000缩进  多个   空格 \n  保留\t \n\n\n\n末\n ",
            "首行 缩进 多个 空格\n  保留\n\n末",
        ),
        ("\u00a0不\u2009换\u202f行", "不 换 行"),
        (" \n\t ", ""),
    ],
)
def test_what_is_changed(text, expected):
    assert normalize(text)[0] == expected


def test_each_rule_reports_its_count_and_an_example():
    changes = {
        change.rule: (change.count, change.example)
        for change in normalize("ｍｇ、ｇ\x00\u200b\r\n\n\n\n  末")[1]
    }
    assert changes == {
        "line_ends": (1, "'\\r\\n' -> '\\n'"),
        "control_characters": (1, "'\\x00' -> ''"),
        "invisible_characters": (1, "'\\u200b' -> ''"),
        "full_width": (2, "'\\uff4d\\uff47' -> 'mg'"),
        "blank_lines": (1, "'\\n\\n\\n\\n' -> '\\n\\n'"),
    }


def test_an_example_shows_no_whole_number():
    _, [change] = normalize("电话１３８１２３４５６７８")
    assert change.example.endswith("-> '1381'")


odd = st.sampled_from(
    "中mé1 \t\n\r\u3000\u00a0\u200b\u200d\u0301\u212a０．＋％Ａ，：\x00℃μ👍\ufeff"
)


@settings(max_examples=400, deadline=None)
@given(st.text(odd | st.characters(exclude_categories=["Cs"]), max_size=20))
def test_a_second_pass_changes_nothing_and_nothing_visible_is_lost(text):
    once, changes = normalize(text)
    assert normalize(once) == (once, [])
    assert (once == text) == (not changes)

    def visible(text):  # the widest folding there is, only here, to compare
        text = unicodedata.normalize("NFKC", text)
        kept = [c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Zs", "Zl", "Zp")]
        return unicodedata.normalize("NFKC", "".join(kept))

    assert visible(once) == visible(text)


@pytest.mark.parametrize("text", [" " * 200_000 + "x", "x" + "\t" * 200_000 + "x", "\n" * 200_000])
def test_long_runs_of_blanks_take_linear_time(text):
    start = time.process_time()
    normalize(text)
    assert time.process_time() - start < 1


def test_no_punctuation_is_deleted():
    text = "，。；：、（）【】％＋－" * 3
    assert re.sub(r"\s", "", normalize(text)[0]) == text
