"""What a model's text says, without its reasoning, markup and width variants."""

import re
import unicodedata
from typing import Literal, TypeAlias

Problem: TypeAlias = Literal[
    "empty", "unfinished", "refusal", "none_of_options", "outside_options", "several", "unparsed"
]
"""Why a text has no answer: `empty`; `unfinished`, reasoning that never ended; `refusal`;
`none_of_options`, it says that no option is right; `outside_options`, a letter that no option has;
`several`, more than one letter where one is asked for; `unparsed`, anything else."""

_REASONING = "think|thinking|thought|reasoning|analysis|reflection"
_CLOSED = re.compile(rf"</(?:{_REASONING})>|◁/think▷|<\|end_of_thought\|>", re.IGNORECASE)
_OPENED = re.compile(rf"<(?:{_REASONING})>|◁think▷|<\|begin_of_thought\|>", re.IGNORECASE)
# The two headings between which medical reasoning models put reasoning and answer.
_FINAL_HEADING = re.compile(r"#+\s*(?:Final Response|最终回答|最终答案)\s*[:：]?", re.IGNORECASE)
_MARKUP = re.compile(r"\\(?:text|mathrm|mathbf|textbf|boldsymbol)\s*(?=\{)|[*`$#]|\\[()\[\]]|</?b>")
# What a model without a stop token goes on with: the next example of the prompt, or the next turn.
_NEXT_TURN = re.compile(
    r"<\|(?:im_end|im_start|endoftext|eot_id|user|end)\|>|</s>|<human>|\[human\]"
    r"|\n\s*(?:问题|题目|问|question|user|human|用户)\s*\d*\s*[::]|\n\s*以下是关于",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"(?:抱歉|对不起|很遗憾|不好意思|sorry)[^\n]{0,30}?(?:无法|不能|不便|没办法|不具备|can't|cannot|unable)"
    r"|作为[^。\n]{0,15}(?:AI|人工智能|语言模型|助手|机器人)[^。\n]{0,30}(?:无法|不能|不具备|没有)"
    r"|(?:无法|不能|难以|没办法)(?:为您|为你|对此|直接|准确|明确|据此)*"
    r"(?:回答|作答|判断|确定|选择|提供|给出|做出|作出|得出)"
    r"|(?:请|建议)(?:您|你|患者)?(?:及时|尽快|直接|先)*(?:咨询|寻求|前往|就医|去医院)"
    r"|我不知道|我不清楚|不确定答案|cannot (?:answer|provide|determine)|I (?:don't|do not) know",
    re.IGNORECASE,
)


def final_text(text: str) -> tuple[str, Problem | None]:
    """The answer in a text: no reasoning, no markup, one width of letters, digits and punctuation.

    Returns:
        The text, and `empty` or `unfinished` if there is none.
    """
    text, is_unfinished = _after_reasoning(text)
    if is_unfinished and not text.strip():
        return "", "unfinished"
    headings = list(_FINAL_HEADING.finditer(text))
    if headings and text[headings[-1].end() :].strip():
        text = text[headings[-1].end() :]
    text = plain(text)
    return text, None if text else "empty"


def without_reasoning(text: str) -> str:
    """The text after the model's reasoning; "" if that never ended."""
    return _after_reasoning(text)[0]


def _after_reasoning(text: str) -> tuple[str, bool]:
    """The text, and whether reasoning starts after it that never ends."""
    closed = list(_CLOSED.finditer(text))
    if closed:
        text = text[closed[-1].end() :]
    opened = _OPENED.search(text)
    return (text[: opened.start()], True) if opened else (text, False)


def plain(text: str) -> str:
    """The text in NFKC without markup of Markdown or TeX, stripped."""
    return unicodedata.normalize("NFKC", _MARKUP.sub("", text)).replace("\r", "").strip()


def without_next_turn(text: str) -> str:
    """The text up to where the model goes on with a question of its own."""
    found = _NEXT_TURN.search(text, 1)
    return text[: found.start()].strip() if found else text


def is_refusal(text: str) -> bool:
    """Whether a text declines to answer, in the usual words of Chinese and English models."""
    return _REFUSAL.search(text) is not None
