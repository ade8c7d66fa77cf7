"""BLEU and ROUGE against the libraries whose definitions they follow, and by hand."""

import time
import warnings

import numpy as np
import pytest

from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.evaluation.scores.text_metrics import scores
from megatron_chimed.evaluation.scores.text_metrics.bleu import bleu, bleu_counts, weighted_bleu
from megatron_chimed.evaluation.scores.text_metrics.rouge import lcs_length, rouge_l, rouge_n
from megatron_chimed.evaluation.scores.text_metrics.scores import MODES, distinct, score_texts
from megatron_chimed.evaluation.scores.text_metrics.set_rouge import dot_sentences, set_rouge_l
from megatron_chimed.evaluation.scores.text_metrics.tokens import (
    sacrebleu_zh_tokens,
    spaced,
    word_tokens,
)

ORACLE = "the oracle, of the extra dev"
PAIRS = [
    (
        "建议口服阿莫西林0.5g,一日3次,体温超过38.5℃时加用布洛芬。",
        "建议服用阿莫西林0.5g,每日3次;体温高于38.5℃可用布洛芬。",
    ),
    ("肺炎", "肺结核"),
    ("患者需做CT检查、MRI检查和B超。", "患者应做CT和B超检查。"),
    ("多喝水", "多喝水"),
    ("咳咳咳咳咳咳咳咳", "咳嗽三天。"),
    ("完全不同", "毫无关系"),
    ("“高血压”——需长期服药……注意休息！定期复查？是的。", "高血压“需”长期服药——注意饮食。复查？是"),
    (
        "The patient's HbA1c is 7.2%, (mildly) high; see IL-6.",
        "HbA1c 7.2% is high, check IL-6/TNF.",
    ),
    ("一。二！三？四.五.六", "一.二。三!四?五"),
    (" 行首空格\n换行 和\t制表 ", "行首空格 换行和制表"),
    ("好", "好的,请按时服药,注意休息,多饮水。"),
]
GENERATED = [a for a, _ in PAIRS]
REFERENCES = [b for _, b in PAIRS]


def random_texts(seed, count=40):
    rng = np.random.default_rng(seed)
    letters = list("患者肺炎咳嗽发热三天,。;.?!“” aBc1 23.5%\n-/")
    return ["x" + "".join(rng.choice(letters, rng.integers(1, 40))) for _ in range(count)]


def value(mode, name, generated=GENERATED, references=REFERENCES):
    return score_texts(generated, references, mode=mode, draws=2).figures[name].value


@pytest.mark.parametrize(
    "text", [*GENERATED, *REFERENCES, *random_texts(0, 100), "\u2014\u2a6d\u20ac"]
)
def test_tokens_of_zh_are_those_of_sacrebleu(text):
    tokenizer_zh = pytest.importorskip("sacrebleu.tokenizers.tokenizer_zh", reason=ORACLE)
    assert sacrebleu_zh_tokens(text) == tokenizer_zh.TokenizerZh()(text.rstrip()).split()


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_corpus_bleu_is_that_of_sacrebleu(order):
    sacrebleu = pytest.importorskip("sacrebleu", reason=ORACLE)
    metric = sacrebleu.metrics.BLEU(tokenize="zh", max_ngram_order=order)
    corpora = [
        (GENERATED, REFERENCES),
        (random_texts(1), random_texts(2)),
        *[([a], [b]) for a, b in PAIRS],
        ([""], ["肺炎"]),
    ]
    for generated, references in corpora:
        oracle = metric.corpus_score(generated, [references]).score
        found = value("standard", f"bleu_{order}", generated, references)
        assert found == pytest.approx(oracle, abs=1e-9), (generated, references)


def test_bleu_by_hand():
    # 4 of 5 words and 2 of 4 pairs match; 5 words against 6.
    counts = bleu_counts(list("abcxd"), list("abcdef"), 2)
    assert counts.tolist() == [5, 6, 4, 2, 5, 4]
    expected = 100 * np.exp(1 - 6 / 5) * np.sqrt(4 / 5 * 2 / 4)
    assert bleu(counts, 2) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL"])
def test_counting_rouge_is_that_of_rouge_score_with_our_tokens(name):
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason=ORACLE)

    class Tokenizer:
        def tokenize(self, text):
            return word_tokens(text)

    scorer = rouge_scorer.RougeScorer([name], tokenizer=Tokenizer())
    ours = {
        "rouge1": lambda a, b: rouge_n(a, b, 1),
        "rouge2": lambda a, b: rouge_n(a, b, 2),
        "rougeL": rouge_l,
    }[name]
    pairs = [*PAIRS, *zip(random_texts(3), random_texts(4), strict=True), ("", "肺炎"), ("肺", "")]
    for generated, reference in pairs:
        oracle = scorer.score(reference, generated)[name]
        assert ours(word_tokens(generated), word_tokens(reference)) == pytest.approx(tuple(oracle))


def test_numbers_and_latin_words_are_whole_tokens():
    tokens = word_tokens("服0.5g,T 38.5℃,COVID-19后1,000 ml")
    assert tokens == ["服", "0.5g", "t", "38.5", "covid", "19", "后", "1,000", "ml"]


def test_two_texts_that_share_numbers_alone_are_not_equal():
    # The default tokenizer of rouge_score sees nothing but 0.5g, 3 and 38.5 here, and gives 1.0.
    words = word_tokens("口服0.5g一日3次超过38.5就诊"), word_tokens("静滴0.5g每周3回低于38.5观察")
    assert rouge_n(*words, 1).f1 < 0.4


def test_repetition_does_not_pay_when_matches_are_counted():
    assert rouge_n(list("aaaab"), list("abcde"), 1) == (0.4, 0.4, pytest.approx(0.4))
    assert rouge_l(list("aaaab"), list("abcde")).precision == 0.4
    assert set_rouge_l([list("aaaab")], [list("abcde")]) == pytest.approx(2 * 0.4 / 1.4, abs=1e-6)


def plain_lcs(first, second):
    row = [0] * (len(second) + 1)
    for a in first:
        before, row = row, [0]
        for place, b in enumerate(second):
            row.append(before[place] + 1 if a == b else max(before[place + 1], row[-1]))
    return row[-1]


@pytest.mark.parametrize("seed", range(20))
def test_the_longest_common_subsequence_is_that_of_the_table(seed):
    rng = np.random.default_rng(seed)
    first, second = (rng.integers(5, size=rng.integers(90)).tolist() for _ in range(2))
    assert lcs_length(first, second) == plain_lcs(first, second) == lcs_length(second, first)


def test_long_texts_take_milliseconds():
    rng = np.random.default_rng(0)
    texts = rng.integers(800, size=(2, 4000)).tolist()
    started = time.process_time()
    lcs_length(*texts)
    assert time.process_time() - started < 1


# --- the authors' definition


@pytest.mark.parametrize("name", ["rouge_1", "rouge_2", "rouge_l"])
def test_chimed_rouge_is_that_of_the_package_rouge(name):
    rouge = pytest.importorskip("rouge", reason=ORACLE)
    generated, references = [*GENERATED, *random_texts(5)], [*REFERENCES, *random_texts(6)]
    scorer = rouge.Rouge()
    figures = score_texts(generated, references, mode="chimed_compat", draws=2).figures
    for place, (a, b) in enumerate(zip(generated, references, strict=True)):
        oracle = scorer.get_scores(spaced(a), spaced(b))[0][name.replace("_", "-")]["f"]
        assert figures[name].per_text[place] == pytest.approx(100 * oracle, abs=1e-9), (a, b)
    pairs = [spaced(a) for a in generated], [spaced(b) for b in references]
    mean = scorer.get_scores(*pairs, avg=True)[name.replace("_", "-")]["f"]
    assert figures[name].value == pytest.approx(100 * mean)


@pytest.mark.parametrize(
    ("name", "weights"), [("bleu_2", (0.5, 0.5)), ("bleu_3", (0.333, 0.333, 0.334))]
)
def test_chimed_bleu_is_that_of_nltk_on_strings(name, weights):
    translate = pytest.importorskip("nltk.translate.bleu_score", reason=ORACLE)
    corpora = [
        (GENERATED, REFERENCES),
        (random_texts(7), random_texts(8)),
        *[([a], [b]) for a, b in PAIRS],
        (["肺"], ["肺炎"]),
    ]
    for generated, references in corpora:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            oracle = translate.corpus_bleu(
                [[spaced(one)] for one in references], [spaced(one) for one in generated], weights
            )
        found = value("chimed_compat", name, generated, references)
        assert found == pytest.approx(100 * oracle, abs=1e-9), (generated, references)


def test_long_texts_need_no_recursion():
    # The package raises a RecursionError at 2,101 characters, and for texts of dots or of nothing.
    rng = np.random.default_rng(0)
    texts = ["".join(chr(0x4E00 + one) for one in rng.integers(300, size=2200)) for _ in range(2)]
    figures = score_texts(
        [texts[0], ".", ""], [texts[1], "肺炎", "肺炎"], mode="chimed_compat"
    ).figures
    values = figures["rouge_l"].per_text
    assert values[0] > 20
    assert values[1:].tolist() == [0, 0]


def test_long_texts_score_as_the_package_does_with_a_table_in_the_open():
    rouge_score = pytest.importorskip("rouge.rouge_score", reason=ORACLE)
    rng = np.random.default_rng(1)
    texts = ["".join(chr(0x4E00 + one) for one in rng.integers(60, size=300)) for _ in range(2)]
    words = [dot_sentences(spaced(one)) for one in texts]
    oracle = rouge_score.rouge_l_summary_level(*[[" ".join(one[0])] for one in words])
    assert set_rouge_l(*words) == pytest.approx(oracle["f"])


# --- LLaMA-Factory's definition


def test_llamafactory_scores_are_those_of_its_libraries():
    jieba = pytest.importorskip("jieba", reason=ORACLE)
    rouge_chinese = pytest.importorskip("rouge_chinese", reason=ORACLE)
    translate = pytest.importorskip("nltk.translate.bleu_score", reason=ORACLE)
    smoothing = translate.SmoothingFunction().method3
    generated, references = [*GENERATED, *random_texts(9)], [*REFERENCES, *random_texts(10)]
    figures = score_texts(generated, references, mode="llamafactory", draws=2).figures
    for place, (a, b) in enumerate(zip(generated, references, strict=True)):
        oracle = translate.sentence_bleu([list(b)], list(a), smoothing_function=smoothing)
        assert figures["bleu_4"].per_text[place] == pytest.approx(100 * oracle), (a, b)
        words = [" ".join(jieba.cut(one)) for one in (a, b)]
        oracles = rouge_chinese.Rouge().get_scores(*words)[0]
        for name in ("rouge_1", "rouge_2", "rouge_l"):
            oracle = oracles[name.replace("_", "-")]["f"]
            assert figures[name].per_text[place] == pytest.approx(100 * oracle), (name, a, b)


def test_without_jieba_the_mode_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jieba", None)
    with pytest.raises(ConfigError, match="pip install jieba"):
        score_texts(["肺炎"], ["肺炎"], mode="llamafactory")


# --- all modes


@pytest.mark.parametrize("mode", MODES)
def test_empty_texts_count_as_zero(mode):
    if mode == "llamafactory":
        pytest.importorskip("jieba", reason=ORACLE)
    text = "建议休息,多饮水。"
    found = score_texts([text, "", "  ", text], [text, text, text, ""], mode=mode, draws=20)
    assert (found.num_texts, found.num_empty, found.num_empty_references) == (4, 2, 1)
    for name in ("rouge_1", "rouge_2", "rouge_l"):
        assert found.figures[name].per_text.tolist() == pytest.approx([100, 0, 0, 0], abs=1e-5)
        assert found.figures[name].value == pytest.approx(25, abs=1e-5)
    assert found.figures["length"].per_text.tolist() == [9, 0, 0, 9]


@pytest.mark.parametrize("mode", MODES)
def test_every_figure_has_a_signature_with_its_mode_and_an_interval(mode):
    if mode == "llamafactory":
        pytest.importorskip("jieba", reason=ORACLE)
    figures = score_texts(GENERATED, REFERENCES, mode=mode, draws=200).figures
    for name, figure in figures.items():
        assert figure.signature.startswith(f"{name}|mode:")
        assert "|tok:" in figure.signature
        assert "|version:" in figure.signature
        if not name.startswith("distinct"):
            assert f"mode:{mode}" in figure.signature or name == "length"
            assert figure.low <= figure.value <= figure.high
    signatures = [figure.signature for figure in figures.values()]
    assert len(set(signatures)) == len(signatures)


def test_the_interval_of_a_corpus_score_is_that_of_its_resamples(monkeypatch):
    figure = score_texts(GENERATED, REFERENCES, seed=5).figures["bleu_1"]
    counts = np.stack(
        [bleu_counts(sacrebleu_zh_tokens(a), sacrebleu_zh_tokens(b)) for a, b in PAIRS]
    )
    rng = np.random.default_rng(5)
    values = [
        bleu(counts[rng.integers(len(PAIRS), size=len(PAIRS))].sum(axis=0), 1) for _ in range(2000)
    ]
    assert (figure.low, figure.high) == pytest.approx(np.percentile(values, [2.5, 97.5]))
    monkeypatch.setattr(scores, "_CHUNK", 1000)
    assert score_texts(GENERATED, REFERENCES, seed=5).figures["bleu_1"] == figure


def test_distinct_n_by_hand():
    assert distinct([list("abab"), list("ab")], 1) == pytest.approx(100 * 2 / 6)
    assert distinct([list("abab"), list("ab")], 2) == pytest.approx(100 * 2 / 4)
    assert distinct([[]], 1) == 0


def test_mistakes_are_explained():
    with pytest.raises(ConfigError, match="did you mean standard"):
        score_texts(["a"], ["a"], mode="standart")
    with pytest.raises(DataError, match="2 texts and 1 references"):
        score_texts(["a", "b"], ["a"])
    with pytest.raises(DataError, match="0 texts"):
        score_texts([], [])


def test_weighted_bleu_of_a_text_without_a_match_is_zero():
    assert weighted_bleu(bleu_counts("甲", "乙丙", least_total=1), (0.25,) * 4, smooth=True) == 0
