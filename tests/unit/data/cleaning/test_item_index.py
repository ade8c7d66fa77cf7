"""The index of test items: which passages count as one, alone and among many texts."""

import pytest

from megatron_chimed.data.cleaning.item_index import ItemIndex
from megatron_chimed.data.cleaning.ngrams import units

QUESTION = "关于急性阑尾炎的临床表现，下列说法中不正确的是"
CHOICES = ("转移性右下腹痛", "麦氏点有固定压痛", "早期即有高热寒战", "腰大肌试验可呈阳性")
ENGLISH = (
    "Which of the following findings is most consistent with acute appendicitis in adults?",
    "Migratory pain in the right lower quadrant",
    "Painless jaundice",
)
OVERLAP = 0.75


def found(text, *items):
    index = ItemIndex(items or [(QUESTION, *CHOICES), ENGLISH], 4)
    return index.find([text], OVERLAP)[0]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("发热，39.5 ℃", ["发", "热", "39", "5"]),
        ("Ｔ细胞CD4+", ["t", "细", "胞", "cd", "4"]),
        ("T cell", ["t", "cell"]),
        ("Tcell", ["tcell"]),
        ("A.当归B.黄连", ["a", "当", "归", "b", "黄", "连"]),
        ("β受体", ["Β", "受", "体"]),
        ("，。 \n", []),
        ("", []),
    ],
)
def test_units_are_characters_words_and_numbers(text, pieces):
    hashes, places = units(text)
    assert hashes.tolist() == [units(piece)[0][0] for piece in pieces]
    assert len(places) == len(pieces) and sorted(places.tolist()) == places.tolist()


def test_the_order_of_letters_and_digits_counts():
    assert units("120")[0] != units("210")[0] and units("ab")[0] != units("ba")[0]
    assert units("𠮷𠮷a")[1].tolist() == [0, 1, 2, 3, 4], "two halves each"


@pytest.mark.parametrize(
    "text",
    [
        f"{QUESTION}（ ）\n" + "\n".join(reversed(CHOICES)),
        "下列说法中不正确的是：关于急性阑尾炎的临床表现\n" + "；".join(CHOICES),
        f"{QUESTION}　" + "".join(f"（{n}）{choice}" for n, choice in enumerate(CHOICES)),
        QUESTION.replace("临床", "临牀") + "".join(CHOICES),
        "请问" + QUESTION[2:],
    ],
)
def test_variants_are_the_item(text):
    assert list(found(f"前文很长，与题目无关。{text}\n后文也与题目无关。")) == [0]


@pytest.mark.parametrize(
    "text",
    [
        "急性阑尾炎的临床表现有转移性右下腹痛，麦氏点有固定压痛。",
        "关于急性阑尾炎的临床表现，请医生介绍一下好吗",
        "，".join(CHOICES[:2]) + "，体温正常",
        "转移性右下腹痛" * 20,
        QUESTION[:11]
        + "以下是一段与题目无关而且足够长的文字，它把题目隔成了两半。" * 4
        + QUESTION[11:],
        "",
    ],
)
def test_texts_on_the_same_subject_are_not(text):
    assert found(text) == {}


def test_text_that_repeats_itself_does_not_cover_choices_that_are_alike():
    diseases = "白喉、百日咳、破伤风、麻疹、脊髓灰质炎"
    item = (
        "儿童计划免疫预防",
        *(f"{diseases}和{last}" for last in ("肺结核", "乙脑", "流脑", "伤寒")),
    )
    assert found(f"法定传染病包括{diseases}和肺结核等。", item) == {}
    assert list(found("\n".join(item), item)) == [0]


def test_english_words_count_like_chinese_characters():
    text = "which of the following findings is most consistent with ACUTE appendicitis in  adults"
    assert list(found(text)) == [1]
    assert found("Most of the following findings are consistent with the right diagnosis.") == {}


def test_many_texts_give_what_each_gives_alone():
    texts = [
        QUESTION,
        "",
        "发热",
        f"😀{QUESTION}",
        "\n".join(ENGLISH),
        QUESTION[:10],
        QUESTION[10:],
    ]
    index = ItemIndex([(QUESTION, *CHOICES), ENGLISH], 4)
    together = index.find(texts, OVERLAP)
    assert together == [index.find([text], OVERLAP)[0] for text in texts]
    assert [list(each) for each in together] == [[0], [], [], [0], [1], [], []]
    assert index.find([], OVERLAP) == []


def test_copies_of_a_test_set_do_not_hide_each_other():
    items = [(QUESTION, *CHOICES), ENGLISH] * 10
    assert list(found(QUESTION, *items)) == list(range(0, 20, 2))


def test_a_question_in_the_middle_of_a_long_document():
    filler = "患者应注意休息，多饮水，清淡饮食，按时服药，定期复查血常规与肝肾功能。" * 500
    assert list(found(filler + QUESTION + "".join(CHOICES) + filler)) == [0]
    assert found(filler) == {}
