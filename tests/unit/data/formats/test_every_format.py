"""Properties of all formats: rows keep their context, and no row crashes a format."""

import copy
import random

import pytest

from megatron_chimed.data.formats.example import Ranking, Text, Turn, UnpairedAnswer
from megatron_chimed.data.formats.registry import FORMATS, ReadOptions
from megatron_chimed.data.formats.row import RowError
from megatron_chimed.errors import DataError


def read_beside(name, row, folder):
    """The examples as readers of files get them, or None for a row that is refused."""
    try:
        return list(FORMATS[name].examples(row, ReadOptions(folder=folder)))
    except RowError:
        return None
    except DataError as error:
        assert name == "cmedqa2" and "this table has questions only" in str(error)
        return None


CONTEXT = {"history": [["earlier", "reply"]], "system": "be brief"}


@pytest.mark.parametrize("key", CONTEXT)
@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("text", "chunyu")])
def test_history_and_system_are_read_by_every_format(folder, name, key):
    """A text has neither, and Chunyu's lines have no keys."""
    sample = {**FORMATS[name].sample, key: None}
    plain = read_beside(name, sample, folder)
    found = read_beside(name, {**sample, key: CONTEXT[key]}, folder)
    if key == "system" and getattr(plain[0], "system", ""):
        assert found is None, "a second system prompt must not replace the one of the format"
        return
    for before, after in zip(plain, found, strict=True):
        was, now = (getattr(example, "prompt", example) for example in (before, after))
        if key == "system":
            assert (now.turns, now.system) == (was.turns, "be brief")
        else:
            assert now.turns == (Turn("earlier", "reply"), *was.turns)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("text", "chunyu")])
def test_a_line_of_text_where_objects_belong_is_refused(name):
    for line in ("", "instruction", "history rank1 dialogue_turns options text_at"):
        with pytest.raises(RowError, match=f"rows of the format {name} are objects"):
            FORMATS[name].examples(line, ReadOptions())


VALUES = [
    *(None, 0, 5, 1.5, True, False, "", " ", "text", "[1]", "[[", [], [[]], ["a"], [None], {}),
    *([["q", "a"]], [["q"]], [[1, 2]], {"a": 1}, {"from": "human", "value": 1}, [{"role": [5]}]),
]
KEYS = sorted({key for entry in FORMATS.values() for key in entry.sample if entry.name != "chunyu"})


def changed(value, random_):
    """The value with one part of it, at any depth, replaced, taken away or added."""
    if random_.random() < 0.3 or not isinstance(value, (list, dict)):
        return copy.deepcopy(random_.choice(VALUES))
    value = copy.copy(value)
    places = list(value) if isinstance(value, dict) else list(range(len(value)))
    kind = random_.randrange(4) if places else 3
    if kind == 0:
        del value[random_.choice(places)]
    elif kind == 3 and isinstance(value, dict):
        value[random_.choice((*KEYS, "system", "history"))] = random_.choice(VALUES)
    elif kind == 3:
        value.append(random_.choice(VALUES))
    else:
        place = random_.choice(places)
        value[place] = changed(value[place], random_)
    return value


def check_example(example):
    if isinstance(example, Text):
        assert type(example.text) is str
        return
    if isinstance(example, UnpairedAnswer):
        example = example.conversation
    asked = example.prompt if isinstance(example, Ranking) else example
    answers = [turn.answer for turn in asked.turns]
    if isinstance(example, Ranking):
        assert answers.pop() == "" and len(set(example.candidates)) == len(example.ranks) > 1
        assert min(example.ranks) == 0 and all(type(rank) is int for rank in example.ranks)
        answers += example.candidates
    texts = [asked.system, *(turn.question for turn in asked.turns), *answers]
    assert all(type(text) is str for text in texts) and all(map(str.strip, texts[1:]))


@pytest.mark.parametrize("name", FORMATS)
def test_fuzzed_rows_become_examples_or_are_refused(folder, name):
    """2,000 damaged samples, fixed seed: never another error, never half an example."""
    random_ = random.Random(name)
    read_ones = 0
    for _ in range(2000):
        row = FORMATS[name].sample
        for _ in range(random_.randint(1, 3)):
            row = changed(row, random_)
        if not isinstance(row, (dict, str)):
            continue
        assert all(entry.fits(row) in (True, False) for entry in FORMATS.values())
        examples = read_beside(name, row, folder)
        read_ones += bool(examples)
        for example in examples or ():
            check_example(example)
    assert 0 < read_ones < 2000 or name == "chunyu"
