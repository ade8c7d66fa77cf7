"""Tokens by which texts are compared.

`word_tokens` are ours, for ROUGE. `sacrebleu_zh_tokens` are those of sacrebleu's tokenizer `zh`,
and `spaced` is the text that the authors of ChiMed-GPT score; both share a table of characters.
"""

import re

# A Chinese character is a token, and so is a number or a Latin word: 38.5, 0.5g, covid.
_WORD = re.compile(r"[a-z0-9]+(?:[.,][0-9]+[a-z0-9]*)*|[^\W_]")

# What sacrebleu and the authors take for Chinese. The two ranges beyond 16 bits are misspelled
# there, and so mean U+2001 to U+2A6D: quotes, dashes and arrows count, rare characters do not.
_CJK_RANGES = (
    "\u2001-\u2a6d\u2e80-\u2fdf\u2ff0-\u303f\u3100-\u312f\u31a0-\u31bf\u31c0-\u31ef\u3200-\u4db5"
    "\u4e00-\u9fbb\uf900-\ufa2d\ufa30-\ufa6a\ufa70-\ufad9\ufe10-\ufe1f\ufe30-\ufe4f\uff00-\uffef"
)
_CJK = re.compile(f"([{_CJK_RANGES}])")
# mteval's rules for Western text: symbols stand alone; a full stop or a comma does beside anything
# but digits, a dash after a digit.
_MTEVAL_RULES = (
    (re.compile(r"([!-&(-+:-@/\[-`{-~])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def word_tokens(text: str) -> list[str]:
    """Chinese characters, numbers and Latin words in lower case; no punctuation, as rouge_score."""
    return _WORD.findall(text.lower())


def spaced(text: str) -> str:
    """The text with a space before and after each Chinese or full-width character."""
    return _CJK.sub(r" \1 ", text.strip())


def sacrebleu_zh_tokens(text: str) -> list[str]:
    """The tokens of sacrebleu's tokenizer `zh`.

    Source: sacrebleu 2.6.0, after mteval-v13a.
    """
    line = spaced(text)
    for pattern, replacement in _MTEVAL_RULES:
        line = pattern.sub(replacement, line)
    return line.split()
