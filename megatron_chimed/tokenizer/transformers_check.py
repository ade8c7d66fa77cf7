"""Verifies that `transformers` gives the same ids as our tokenizer for an exported folder."""

import itertools
import os
import re
from collections.abc import Iterable, Iterator

from megatron_chimed.errors import DataError
from megatron_chimed.tokenizer.bpe_export import WAY_OUT
from megatron_chimed.tokenizer.check_texts import texts_of_vocabulary
from megatron_chimed.tokenizer.concatenation import recognised_only_by_transformers
from megatron_chimed.tokenizer.loading import load_tokenizer
from megatron_chimed.tokenizer.model_proto import BYTE, NORMAL, parse_model
from megatron_chimed.tokenizer.saving import SPACE
from megatron_chimed.tokenizer.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_chimed.tokenizer.tokenizer import Tokenizer

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


BATCH = 1000
SHOWN = 40  # ids in a message


def check_transformers_agreement(
    folder: str | os.PathLike, texts: Iterable[str] | None = None
) -> None:
    """Loads a folder with both and compares the ids of many texts.

    Takes about 10 s for a vocabulary of 50,000 pieces, in proportion to their number.

    Args:
        folder: A Hugging Face folder with a tokenizer.
        texts: Texts to compare; None: a fixed set, each token that is recognised in text, in
            several contexts, and for sentencepiece, texts made from the vocabulary, about 90,000
            for 50,000 pieces.

    Raises:
        DataError: The ids of a text differ; names the first such text and both lists.
    """
    ours = load_tokenizer(folder)
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(os.fspath(folder), trust_remote_code=False)
    compared = _all_texts(ours) if texts is None else texts
    for batch in _batches(compared):
        found = theirs(batch, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        for text, left, right in zip(batch, ours.encode_batch(batch), found, strict=True):
            if left != list(right):
                raise _difference(folder, text, left, list(right))


def _difference(
    folder: str | os.PathLike, text: str, expected: list[int], found: list[int]
) -> DataError:
    at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), 0)
    start = max(0, at - SHOWN // 2)
    part = slice(start, start + SHOWN)
    return DataError(
        f"{folder}: transformers disagrees with our tokenizer on {text[:200]!r}: ours "
        f"gives {expected[part]}, transformers {found[part]} (from token {start}). An exported "
        f"model would read other tokens than it was trained on. {WAY_OUT}"
    )


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(texts)
    while batch := list(itertools.islice(remaining, BATCH)):
        yield batch


def _all_texts(tokenizer: Tokenizer) -> Iterator[str]:
    """The fixed texts, each token in several contexts, and texts made from the vocabulary."""
    yield from TEXTS
    for token in tokenizer.recognised:
        yield from (template.replace("@", token) for template in TOKEN_TEMPLATES)
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return  # its tokenizer.json is the file that it was read from
    proto = parse_model(tokenizer.model_bytes)
    pieces = [p.piece.replace(SPACE, " ") for p in proto.pieces if p.type == NORMAL]
    others = [p.piece for p in proto.pieces if p.type == BYTE]
    recognised = re.compile("|".join(map(re.escape, recognised_only_by_transformers(tokenizer))))
    for text in texts_of_vocabulary(pieces, others):
        yield recognised.sub("", text)
