"""Verifies that `transformers` gives the same ids as our tokenizer for an exported folder."""

import os
from collections.abc import Iterable

from megatron_chimed.errors import DataError
from megatron_chimed.tokenizer.loading import load_tokenizer

# Where tokenizers are known to disagree: spaces, line ends, bytes, digits, scripts. Literal control
# tokens are omitted on purpose: transformers recognises `</s>` in text, we never do.
TEXTS = (
    "",
    "a",
    "发热",
    "患者男，35岁，因“发热伴咳嗽3天”入院。",
    "体温38.5℃，血压120/80mmHg，脉搏92次/分。",
    "阿莫西林胶囊 0.5g tid po × 7d；地塞米松 5~10 mg qd。",
    "血糖 ≥ 7.0 mmol/L，肌酐 88 μmol/L，尿蛋白（±），INR 2.0-3.0",
    "Mycobacterium tuberculosis（结核分枝杆菌）感染 IFN-γ 释放试验阳性",
    "第一行\n第二行\n\n第四行",
    "\n开头换行",
    "结尾换行\n",
    "\r\n\t制表\t符\r\n",
    " 一个前导空格",
    "    四个前导空格",
    "a  b   c    d",
    "尾随空格   ",
    "   ",
    "全角　空格",
    "123456789 0.001 1,000,000 2023-11-15",
    "𠮷野家的𩸽 龘靐齉",
    "😀👍🏽👨‍👩‍👧",
    "e\u0301 é ﬁ ①②③",
    "def f(x):\n    return x ** 2\n",
    "https://example.org/a?b=c&d=%20",
    "İstanbul Zürich Ελλάδα привет",
)
# Each @ is replaced by a token.
TOKEN_TEMPLATES = (
    "@",
    "@:发热怎么办？\n@:",
    "前@后",
    "前 @ 后",
    " @",
    "@@",
    "@  两个空格",
    "咳嗽@",
)


def check_transformers_agreement(
    folder: str | os.PathLike, texts: Iterable[str] | None = None
) -> None:
    """Loads a folder with both and compares the ids of a fixed set of texts.

    Args:
        folder: A Hugging Face folder with a tokenizer.
        texts: Texts to compare; None: the built-in set, and each token that is recognised in text,
            in several contexts.

    Raises:
        DataError: The ids of a text differ; names the first such text and both lists.
    """
    ours = load_tokenizer(folder)
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(os.fspath(folder), trust_remote_code=False)
    for text in _all_texts(ours.recognised) if texts is None else texts:
        expected = ours.encode(text)
        found = list(theirs(text, add_special_tokens=False)["input_ids"])
        if found != expected:
            raise DataError(
                f"{folder}: transformers disagrees with our tokenizer on {text!r}: ours gives "
                f"{expected}, transformers {found}. An exported model would read other tokens than "
                "it was trained on."
            )


def _all_texts(tokens: Iterable[str]) -> list[str]:
    """The built-in texts, and each token in several contexts."""
    around = [template.replace("@", token) for token in tokens for template in TOKEN_TEMPLATES]
    return [*TEXTS, *around]
