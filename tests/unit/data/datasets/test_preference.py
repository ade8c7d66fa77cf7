"""Ranked answers in packs: whole groups, with each candidate's values at its last token."""

import json

import numpy as np
import pytest

from megatron_chimed.data.datasets.preference import PreferenceDataset
from megatron_chimed.data.datasets.prefix import open_prefix
from megatron_chimed.errors import ConfigError, DataError
from tests.unit.data.packed_prefixes import write_groups

# (prompt, [(answer, rank), ...]): pairs either way round, a ranking with a tie, a long one.
GROUPS = [
    ([1, 2], [([3, 4], 0), ([5], 1)]),
    ([6], [([7, 8, 9], 1), ([10], 0)]),
    ([11, 12], [([13], 2), ([14, 15], 0), ([16], 1), ([17, 18], 1)]),
    ([20, 21, 22], [([23] * 6, 0), ([24] * 9, 1)]),
]
MARGINS = [0.5, -1.0, 0.0, 2.0, 1.0, 3.0, 2.0, 2.0, 0.0, 0.0]


def make(prefix, seq_length=24, **options):
    options = {"documents": (0, len(GROUPS)), "seed": 1, **options}
    return PreferenceDataset(
        prefix.indexed, prefix.targets, prefix.rankings, seq_length=seq_length, **options
    )


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    return open_prefix(write_groups(tmp_path_factory.mktemp("ranked") / "data", GROUPS, MARGINS))


def groups_of(sample):
    """What a stage finds in a sample: groups of (ids, learned ids, rank, margin, prompt)."""
    ends = np.flatnonzero(sample["ranks"] >= 0)
    found = {}
    for segment, end in enumerate(ends):
        here = np.flatnonzero(sample["segment_ids"] == segment)
        assert here[-1] == end, "the rank does not stand at the last token"
        (group,) = set(sample["group_ids"][here].tolist())
        ids = sample["tokens"][here].tolist()
        learned = sample["labels"][here][sample["loss_mask"][here] > 0].tolist()
        rank, margin = int(sample["ranks"][end]), float(sample["margins"][end])
        prompt = ids[: sample["prompt_lengths"][end]]
        found.setdefault(group, []).append((ids, learned, rank, margin, prompt))
    assert list(found) == list(range(len(found)))
    is_padding = sample["segment_ids"] == len(ends)
    assert (sample["group_ids"][is_padding] == -1).all()
    return list(found.values())


@pytest.mark.parametrize("seq_length", [24, 40, 60])
def test_an_epoch_is_every_group_once(prefix, seq_length):
    dataset = make(prefix, seq_length)
    margins = iter(MARGINS)
    expected = [
        [([*prompt, *ids], ids, rank, next(margins), prompt) for ids, rank in answers]
        for prompt, answers in GROUPS
    ]
    for epoch in range(3):
        first = epoch * dataset.samples_per_epoch
        samples = [dataset[first + i] for i in range(dataset.samples_per_epoch)]
        found = sorted(group for sample in samples for group in groups_of(sample))
        assert found == sorted(expected)


def test_shapes_and_types_do_not_depend_on_what_is_packed(prefix):
    dataset = make(prefix, 30)
    samples = [dataset[i] for i in range(dataset.samples_per_epoch)]
    facts = {
        tuple((key, array.shape, array.dtype.name) for key, array in sample.items())
        for sample in samples
    }
    assert len(facts) == 1
    assert {shape for _, shape, _ in facts.pop()} == {(30,)}


def test_no_margins_are_zeros(tmp_path):
    prefix = open_prefix(write_groups(tmp_path / "data", GROUPS))
    assert not prefix.rankings.margins.any()
    some = [1.0, 2.0, *[np.nan] * 8]  # one group has them
    prefix = open_prefix(write_groups(tmp_path / "some", GROUPS, some))
    assert prefix.rankings.margins.tolist() == [1.0, 2.0, *[0.0] * 8]


def test_groups_that_do_not_fit_are_an_error_or_counted(prefix):
    with pytest.raises(DataError, match="1 of 4 documents are longer than seq_length 20"):
        make(prefix, 20)
    dataset = make(prefix, 20, overlong="drop")
    note = f"{prefix.indexed.prefix}: 1 of 4 groups are longer than 20 tokens: dropped"
    assert dataset.notes == (note,)
    count = dataset.samples_per_epoch
    assert sum(len(groups_of(dataset[i])) for i in range(count)) == 3
    with pytest.raises(ConfigError, match="data.overlong is truncate, .* compared whole"):
        make(prefix, 20, overlong="truncate")
    with pytest.raises(DataError, match="no group fits seq_length 4"):
        make(prefix, 4, overlong="drop")


def test_locate_names_the_groups(prefix):
    assert make(prefix, 60, shuffle=False).locate(0).endswith("data.ranked, document 3, 2, 0, 1")


def damaged(change):
    """Applies a change to the JSON."""
    return lambda text: json.dumps({**json.loads(text), **change(json.loads(text))})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-9], "Expecting"),
        (lambda text: "[]", "list indices"),
        (damaged(lambda v: {"format_version": 7}), "format_version is 7"),
        (damaged(lambda v: {"ranks": v["ranks"][:-1]}), "ranks do not fit|shorter"),
        (damaged(lambda v: {"ranks": [[0], *v["ranks"][1:]]}), "ranks do not fit the candidates"),
        (damaged(lambda v: {"ranks": [[0, -1], *v["ranks"][1:]]}), "a rank is negative"),
        (damaged(lambda v: {"ranks": [["a", 1], *v["ranks"][1:]]}), "invalid literal"),
        (damaged(lambda v: {"margins": [[1.0]] * 4}), "margins do not fit the candidates"),
        (damaged(lambda v: {"margins": [[1e400, 0.0], *v["margins"][1:]]}), "not finite"),
        (damaged(lambda v: {"prompt_lengths": [2]}), "1 prompt lengths of 4 groups"),
        (damaged(lambda v: {"prompt_lengths": [3, 1, 2, 3]}), "a prompt is as long as"),
        (damaged(lambda v: {"prompt_lengths": None}), "damaged"),
    ],
)
def test_a_damaged_rank_file_is_refused(tmp_path, change, message):
    name = write_groups(tmp_path / "data", GROUPS, MARGINS)
    path = tmp_path / "data.rank.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=message) as caught:
        open_prefix(name)
    assert str(path) in str(caught.value)


def test_a_source_that_teaches_nothing_is_refused(tmp_path):
    name = write_groups(tmp_path / "data", GROUPS)
    prefix = open_prefix(name)
    with pytest.raises(DataError, match="none of the 4 documents from 0 on has a supervised"):
        PreferenceDataset(
            prefix.indexed,
            np.zeros_like(prefix.targets),
            prefix.rankings,
            documents=(0, 4),
            seq_length=60,
            seed=0,
        )
