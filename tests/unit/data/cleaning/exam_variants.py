"""Exam questions as they leak into training data: seeded variants of an item, planted in a text.

    for item in read_exam(folder):
        text = plant(item, "reordered", seed=0)   # a row or a document that holds the variant

Every draw depends on the seed, the variant and the question only, so a failure can be repeated.
"""

import csv
import random
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

LETTERS = "ABCDEFGH"
CIRCLED = "①②③④⑤⑥⑦⑧"
CHANGED_SHARE = 0.03
CLAUSE_END = re.compile(r"(?<=[，。；、？！,;?])")
CHARACTERS = "的一是在不了有人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工"
HALF_WIDTH = str.maketrans("，。；：？！（）“”", ',.;:?!()""')
HEADS = (
    "",
    "选择题：",
    "请回答下面的问题。\n",
    "在日常护理中要注意休息，多喝水，避免过度劳累，必要时到医院复查。",
    "下面是一道单选题，请选择正确的答案选项。\n问题：",
)
TAILS = (
    "",
    "\n根据题意，应选择上面正确的一项。",
    "\n如果症状持续，请及时就诊，由医生根据检查结果决定治疗方案。平时清淡饮食，保持心情舒畅。",
)


@dataclass(frozen=True)
class ExamItem:
    """One multiple-choice question."""

    question: str
    choices: tuple[str, ...]
    answer: str


Change = Callable[[ExamItem, random.Random], str]


def read_exam(folder: Path) -> Iterator[ExamItem]:
    """The items of the CMMLU tables in a folder, in the order of `--decontaminate FOLDER`."""
    for path in sorted(folder.glob("*.csv")):
        with open(path, newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                choices = tuple(row[letter] for letter in "ABCD")
                yield ExamItem(row["Question"], choices, row["Answer"])


def plant(item: ExamItem, variant: str, seed: int) -> str:
    """A training text that holds a variant of the item."""
    draw = random.Random(f"{seed} {variant} {item.question}")
    return draw.choice(HEADS) + VARIANTS[variant](item, draw) + draw.choice(TAILS)


def listed(item: ExamItem, mark: str = "{letter}.", end: str = "\n") -> str:
    """Question and choices; `mark` may use letter, number and circle."""
    lines = [item.question]
    for place, choice in enumerate(item.choices):
        number = mark.format(letter=LETTERS[place], number=place + 1, circle=CIRCLED[place])
        lines.append(number + choice)
    return end.join(lines)


def _reordered(item: ExamItem, draw: random.Random) -> str:
    choices = list(item.choices)
    while tuple(choices) == item.choices and len(set(choices)) > 1:
        draw.shuffle(choices)
    return listed(replace(item, choices=tuple(choices)))


def _edited(item: ExamItem, draw: random.Random) -> str:
    """3 % of the characters, one at least: substituted, deleted or preceded by another one."""
    characters = list(listed(item))
    count = max(1, round(CHANGED_SHARE * len(characters)))
    places = [place for place, character in enumerate(characters) if character.isalnum()]
    for place in draw.sample(places, min(count, len(places))):
        other = draw.choice(CHARACTERS)
        characters[place] = draw.choice((other, "", other + characters[place]))
    return "".join(characters)


def _clauses_swapped(item: ExamItem, draw: random.Random) -> str:
    """The clauses of the question in another order; one clause is cut into two halves."""
    clauses = [clause for clause in CLAUSE_END.split(item.question) if clause]
    if len(clauses) < 2:
        middle = len(item.question) // 2
        clauses = [item.question[:middle], item.question[middle:]]
    first = draw.randrange(len(clauses) - 1)
    clauses[first], clauses[first + 1] = clauses[first + 1], clauses[first]
    return listed(replace(item, question="".join(clauses)))


def _clauses_shuffled(item: ExamItem, draw: random.Random) -> str:
    clauses = [clause for clause in CLAUSE_END.split(item.question) if clause]
    draw.shuffle(clauses)
    return listed(replace(item, question="".join(clauses)))


def _start_changed(item: ExamItem, draw: random.Random) -> str:
    start = "".join(draw.choice(CHARACTERS) for _ in range(4))
    return listed(replace(item, question=start + item.question[4:]))


def _full_width(item: ExamItem, draw: random.Random) -> str:
    text = listed(item)
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def _other_punctuation(item: ExamItem, draw: random.Random) -> str:
    text = unicodedata.normalize("NFKC", listed(item)).translate(HALF_WIDTH)
    return re.sub(r"\s+", " ", text).replace(",", " ， ")


VARIANTS: dict[str, Change] = {
    "verbatim": lambda item, draw: listed(item),
    "reordered": _reordered,
    "edited": _edited,
    "clauses swapped": _clauses_swapped,
    "clauses shuffled": _clauses_shuffled,
    "start changed": _start_changed,
    "question only": lambda item, draw: item.question,
    "with answer": lambda item, draw: f"{listed(item)}\n答案：{item.answer}",
    "answer in place": lambda item, draw: (
        f"{item.question}（{item.answer}）\n{item.choices[LETTERS.index(item.answer)]}"
    ),
    "letters, one line": lambda item, draw: listed(item, "{letter}、", "　"),
    "numbers": lambda item, draw: listed(item, "({number}) "),
    "circled numbers": lambda item, draw: listed(item, "{circle}"),
    "no marks": lambda item, draw: listed(item, ""),
    "blank lines": lambda item, draw: listed(item, "（{letter}） ", "\n\n"),
    "full width": _full_width,
    "other punctuation": _other_punctuation,
}
