"""Writes questions about the corpus's diseases for SFT, reward model and rejection sampling.

    python -m examples.quickstart.dialogues --output demo_out/dialogues --seed 1234

Answers collected from forums are of mixed quality. So are these, on purpose: a share WRONG_SHARE of
the SFT answers lists, in the same wording, something else than what was asked for, such as drugs
instead of symptoms. A pair for the reward model has a right and such a wrong answer, worded alike
and equally long within LENGTH_TOLERANCE; the right answer is longer as often as it is shorter. Some
wrong training answers repeat one right item, so that the policy does not learn to do so.

The diseases are split like the corpus: no file names one of another split. Choose settings by
`valid`, and judge by `test`.

The text is synthetic and for software demonstration only; it is not medical advice.
"""

import dataclasses
import functools
import itertools
import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from examples.quickstart.corpus.facts import Disease, load_diseases, split_diseases
from megatron_chimed.command_line import CommandParser
from megatron_chimed.errors import run_command
from megatron_chimed.files import write_text

FIELDS = ("symptoms", "exams", "drugs", "care", "complications", "prevention")
# Fields whose items are acceptable answers to each other's questions.
ALIKE = ({"care", "prevention"}, {"symptoms", "complications"})
WRONG_SHARE = 0.4
FOLLOW_UP_SHARE = 0.15
ITEMS = (2, 3)
SEPARATOR = "、"
LENGTH_TOLERANCE = 0.1
# Rows for each disease and field; for pairs, also for each wrong field.
SFT_ROWS = {"train": 10, "valid": 2}
PAIR_ROWS = {"train": 2, "valid": 2, "test": 2}
PROMPT_ROWS = {"train": 1, "test": 2}
# Pairs for each disease and field whose wrong answer repeats an item.
REPEATED_ROWS = {"train": 1}

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wording:
    """Contents of dialogues.yaml."""

    questions: dict[str, list[str]]
    """By field, with `{name}`."""
    follow_ups: dict[str, list[str]]
    """By field, for a second question about the same disease, which they do not name."""
    answers: list[str]
    """With `{items}`."""


@functools.cache
def load_wording() -> Wording:
    """Reads dialogues.yaml."""
    path = Path(__file__).with_suffix(".yaml")
    return Wording(**yaml.safe_load(path.read_text(encoding="utf-8")))


def wrong_fields(field: str) -> list[str]:
    """The fields whose items are wrong answers to a question about `field`."""
    return [f for f in FIELDS if f != field and not any({f, field} <= group for group in ALIKE)]


def write_dialogues(folder: str | os.PathLike, seed: int = 1234) -> dict[str, int]:
    """Writes sft_SPLIT.jsonl, pairs_SPLIT.jsonl and prompts_SPLIT.jsonl for the splits of *_ROWS.

    Every row holds `prompt`, `history`, `topic` (the disease) and `category` (the field asked for);
    those of sft also `response`, which but for training is always right, those of pairs `chosen`
    and `rejected`, prompts `id`. The same seed gives the same bytes.

    Returns:
        Number of rows by file name without suffix.
    """
    parts = split_diseases(load_diseases())
    kinds = {
        "sft": (_sft_rows, SFT_ROWS),
        "pairs": (_pair_rows, PAIR_ROWS),
        "prompts": (_prompt_rows, PROMPT_ROWS),
    }
    counts = {}
    for kind, (make, splits) in kinds.items():
        for split in splits:
            name = f"{kind}_{split}"
            rows = make(split, parts[split], random.Random(f"{seed}/{name}"))
            write_text(Path(folder, f"{name}.jsonl"), "".join(map(as_line, rows)))
            counts[name] = len(rows)
    return counts


def as_line(row: Row) -> str:
    """A line of a jsonl file."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def _sft_rows(split: str, diseases: Sequence[Disease], rng: random.Random) -> list[Row]:
    rows = []
    for disease, field, _ in itertools.product(diseases, FIELDS, range(SFT_ROWS[split])):
        wrong = split == "train" and rng.random() < WRONG_SHARE
        listed = rng.choice(wrong_fields(field)) if wrong else field
        rows.append(_ask(disease, field, rng) | {"response": _answer(disease, listed, rng)})
    rng.shuffle(rows)
    return rows


def _pair_rows(split: str, diseases: Sequence[Disease], rng: random.Random) -> list[Row]:
    rows, lead = [], 0  # pairs whose right answer is longer, minus pairs whose wrong answer is
    for disease, field in itertools.product(diseases, FIELDS):
        wrongs = [*PAIR_ROWS[split] * wrong_fields(field), *REPEATED_ROWS.get(split, 0) * [field]]
        for wrong in wrongs:
            answer = rng.choice(load_wording().answers).replace("{name}", disease.name)
            choices = list(_alike_in_length(disease, field, wrong, answer))
            signs = (-lead,) if lead else (-1, 1)
            fitting = [pair for pair in choices if _longer(pair) in signs]
            fitting = fitting or [pair for pair in choices if not _longer(pair)]
            if fitting:
                pair = rng.choice(fitting)
                lead += _longer(pair)
                chosen, rejected = (_fill(answer, items, rng) for items in pair)
                row = _ask(disease, field, rng)
                rows.append(row | {"chosen": chosen, "rejected": rejected})
    rng.shuffle(rows)
    return rows


def _prompt_rows(split: str, diseases: Sequence[Disease], rng: random.Random) -> list[Row]:
    asked = itertools.product(diseases, FIELDS, range(PROMPT_ROWS[split]))
    return [{"id": f"{d.name}/{field}/{n}", **_ask(d, field, rng)} for d, field, n in asked]


def _ask(disease: Disease, field: str, rng: random.Random) -> Row:
    """A question, sometimes after a question about another field and its answer."""
    wording = load_wording()
    question, history = rng.choice(wording.questions[field]), []
    if rng.random() < FOLLOW_UP_SHARE:
        first = rng.choice([other for other in FIELDS if other != field])
        asked = rng.choice(wording.questions[first]).format(name=disease.name)
        history = [[asked, _answer(disease, first, rng)]]
        question = rng.choice(wording.follow_ups[field])
    return {
        "prompt": question.format(name=disease.name),
        "history": history,
        "topic": disease.name,
        "category": field,
    }


def _answer(disease: Disease, field: str, rng: random.Random) -> str:
    """An answer that lists some items of a field."""
    answer = rng.choice(load_wording().answers).replace("{name}", disease.name)
    known = items_of(disease, field)
    return _fill(answer, rng.sample(known, min(rng.choice(ITEMS), len(known))), rng)


def items_of(disease: Disease, field: str) -> list[str]:
    """The items of a field without their details; items that are lists themselves are left out."""
    return [item for item, _ in disease.items[field] if SEPARATOR not in item]


def _fill(answer: str, items: Sequence[str], rng: random.Random) -> str:
    return answer.format(items=SEPARATOR.join(rng.sample(items, len(items))))


def _alike_in_length(
    disease: Disease, right: str, wrong: str, answer: str
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Choices of the same number of items of two fields that make two answers equally long.

    If both are the same field, the second choice repeats one item.
    """
    words = len(answer.format(items=""))
    known = items_of(disease, wrong)
    for count in ITEMS:
        again = [count * (item,) for item in known]
        others = again if right == wrong else itertools.combinations(known, count)
        first = itertools.combinations(items_of(disease, right), count)
        for pair in itertools.product(first, others):
            lengths = [words + count - 1 + sum(map(len, items)) for items in pair]
            if max(lengths) - min(lengths) <= LENGTH_TOLERANCE * min(lengths):
                yield pair


def _longer(pair: tuple[Sequence[str], Sequence[str]]) -> int:
    """1 if the first of two lists is longer, -1 if the second is, else 0."""
    first, second = (sum(map(len, items)) for items in pair)
    return (first > second) - (first < second)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the files and prints their sizes."""
    parser = CommandParser(description="Write the demo's synthetic dialogues.")
    parser.add_argument("--output", required=True, type=Path, help="folder for the jsonl files")
    parser.add_argument("--seed", type=int, default=1234, help="any integer (default: 1234)")
    options = parser.parse_args(argv)
    for name, rows in write_dialogues(options.output, options.seed).items():
        print(f"{name}: {rows:,} rows in {options.output / name}.jsonl")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
