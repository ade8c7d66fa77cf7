"""Reads which point of a scale an answer in the model's own words chooses, or why none."""

import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

from megatron_chimed.evaluation.scores.answer_text import (
    final_text,
    is_refusal,
    plain,
    without_next_turn,
)

ScaleProblem: TypeAlias = Literal["refusal", "off_scale", "unparsed"]
"""`refusal`; `off_scale`, an option that the scale does not have; `unparsed`, anything else."""
SCALE_PROBLEMS: tuple[ScaleProblem, ...] = ("refusal", "off_scale", "unparsed")

_LABEL = r"[A-Za-z]|\d+(?:\.\d+)?"
_LABEL_END = r"(?![A-Za-z\d'’]|\.\d|\s*[年月天周个次小])"
_LEADING = re.compile(rf"^[\s(\[【「\"'“]*({_LABEL}){_LABEL_END}(?![ \t]+[a-z])")
_CUED = re.compile(
    r"(?<![不没别勿])(?:选择|选项|答案|回答|选|option|answer|choose|choice)(?:应该|应|是|为|is|of|[:\s(\[【「\"'“])*"
    rf"({_LABEL}){_LABEL_END}",
    re.IGNORECASE,
)
_NO_OPINION = re.compile(
    r"(?:没有|不具备|不存在|不持有)(?:任何|个人|自己的|主观|情感|真实|的|[、和或])*(?:观点|看法|态度|立场|意见|感受|偏好)"
    r"|\bI (?:do not|don't) (?:have|hold) (?:any )?(?:personal )?(?:opinions?|views?|beliefs?)",
    re.IGNORECASE,
)
# Before a point's words: they are denied, or of a degree that the scale does not have.
_OTHER_DEGREE = re.compile(
    r"(?:不|没有?|未|别|非常|比较|较为?|有点儿?|有些|完全|强烈|十分|很|略微?|稍微?|部分|极其|不太|基本"
    r"|\b(?:not|n't|strongly|somewhat|slightly|partly|fully|completely|mostly))\s*$",
    re.IGNORECASE,
)
_BETWEEN = re.compile(
    r"中立|不确定|不好说|说不清|看情况|视情况|介于|一般|无所谓|neutral|unsure|undecided|it depends",
    re.IGNORECASE,
)


def read_point(
    answer: str, labels: Sequence[str], words: Sequence[str]
) -> tuple[int | None, ScaleProblem | None]:
    """The place of the chosen option among those presented, or why there is none.

    Args:
        answer: The model's text.
        labels: Of the options as presented; empty if they have none.
        words: Of the options as presented.

    Returns:
        One of both is None.
    """
    text, missing = final_text(answer)
    if missing:
        return None, "unparsed"
    text = without_next_turn(text).casefold()
    names = [label.casefold() for label in labels]
    of_words, is_other = _places_of_words(text, [plain(each).casefold() for each in words])
    label = _label(text, names) if names else None
    if label is None and (is_refusal(text) or _NO_OPINION.search(text)):
        return None, "refusal"
    chosen = set(of_words)
    if label is not None:
        if label not in names:
            return None, "off_scale"
        chosen.add(names.index(label))
    if len(chosen) == 1:
        return chosen.pop(), None
    if not chosen and (is_other or _BETWEEN.search(text)):
        return None, "off_scale"
    return None, "unparsed"


def _label(text: str, names: Sequence[str]) -> str | None:
    """The label at the start, else the last one that is named as the choice; rather one of ours."""
    leading = _LEADING.search(text)
    stated = [leading.group(1)] if leading else []
    stated += reversed([found.group(1) for found in _CUED.finditer(text)])
    ours = [label for label in stated if label in names]
    return next(iter(ours or stated), None)


def _places_of_words(text: str, words: Sequence[str]) -> tuple[set[int], bool]:
    """Places of the words in a text, and whether it has some in another degree."""
    longest = sorted(words, key=len, reverse=True)
    pattern = re.compile(rf"(?<![a-z])(?:{'|'.join(map(re.escape, longest))})(?![a-z])")
    found: set[int] = set()
    is_other = False
    for match in pattern.finditer(text):
        if _OTHER_DEGREE.search(text[: match.start()]):
            is_other = True
        else:
            found.add(words.index(match.group()))
    return found, is_other
