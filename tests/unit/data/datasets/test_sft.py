"""Conversations in packs: all of them, whole, with targets; or a message with the count."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_chimed.data.datasets.sft import SFTDataset
from megatron_chimed.errors import DataError
from tests.unit.data.packed_prefixes import answered, open_conversations
from tests.unit.data.prefixes import open_prefix

LENGTHS = [5, 9, 2, 14, 7, 1, 11, 4, 6, 3]


def make(prefix, seq_length=16, documents=None, **options):
    documents = documents or (0, prefix.indexed.num_documents)
    options = {"seed": 1, **options}
    return SFTDataset(
        prefix.indexed, prefix.targets, documents=documents, seq_length=seq_length, **options
    )


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    return open_conversations(folder / "data", answered(LENGTHS))


def conversations_of(sample):
    """(ids, learned ids) of each segment but the padding."""
    found = []
    for segment in range(sample["segment_ids"][-1] + 1):
        here = sample["segment_ids"] == segment
        ids, mask = sample["tokens"][here], sample["loss_mask"][here] > 0
        assert sample["position_ids"][here].tolist() == list(range(len(ids)))
        assert sample["labels"][here][:-1].tolist() == ids[1:].tolist()
        assert not mask[-1], "the last token of a segment predicts nothing"
        found.append((ids.tolist(), sample["labels"][here][mask].tolist()))
    if not any(learned for _, learned in found[-1:]) and set(found[-1][0]) == {0}:
        found.pop()
    return found


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 5), seq_length=st.integers(14, 80))
def test_an_epoch_is_every_conversation_once(prefix, seed, epoch, seq_length):
    dataset = make(prefix, seq_length, seed=seed)
    first = epoch * dataset.samples_per_epoch
    samples = [dataset[first + i] for i in range(dataset.samples_per_epoch)]
    found = sorted(c for sample in samples for c in conversations_of(sample))
    expected = []
    for ids, mask in answered(LENGTHS):
        learned = [i for i, is_target in zip(ids, mask, strict=True) if is_target]
        expected.append((list(ids), [i for i in learned if i != ids[0]]))
    assert found == expected
    assert all(len(sample["tokens"]) == seq_length for sample in samples)


def test_the_end_of_every_answer_is_learned(prefix):
    dataset = make(prefix)
    ends = {int(end) - 1 for end in np.cumsum(LENGTHS)} - {37}  # one conversation is one token
    learned = set()
    for index in range(dataset.samples_per_epoch):
        learned.update(*(ids for _, ids in conversations_of(dataset[index])))
    assert ends <= learned


def test_locate_names_the_conversations(prefix):
    dataset = make(prefix, shuffle=False, documents=(2, 5))
    assert dataset.locate(0) == f"{prefix.name}, document 3, 2"


def test_validation_packs_are_the_same_in_every_epoch(prefix):
    dataset = make(prefix, shuffle=False)
    count = dataset.samples_per_epoch
    for index in range(count):
        again = dataset[index + 3 * count]
        assert all(np.array_equal(array, again[key]) for key, array in dataset[index].items())


def two_answers(*lengths):
    """Ids 1, 2, ...; `lengths` are those of question, answer, question, answer, ..."""
    ids = range(1, sum(lengths) + 1)
    return list(ids), [turn % 2 for turn, length in enumerate(lengths) for _ in range(length)]


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    conversations = [
        two_answers(2, 2),
        two_answers(3, 3, 2, 8),  # the first turn of 6 fits 10 tokens
        two_answers(3, 4, 2, 1, 4, 2),  # the first two turns are 10 tokens, exactly
        two_answers(4, 9),  # the only answer does not end in time
        two_answers(9, 1, 3, 3),  # its first answer is the tenth token
        two_answers(10, 4),  # no answer begins in time
    ]
    return open_conversations(tmp_path_factory.mktemp("long") / "data", conversations)


def test_too_long_conversations_are_an_error_that_counts_them(long):
    with pytest.raises(DataError) as caught:
        make(long, 10)
    message = str(caught.value)
    assert "5 of 6 documents are longer than seq_length 10" in message
    assert "the longest, document 1, has 16 tokens" in message
    assert "--data.overlong" in message


def test_truncation_keeps_whole_answers_and_counts_the_others(long):
    dataset = make(long, 10, overlong="truncate", shuffle=False)
    samples = [dataset[i] for i in range(dataset.samples_per_epoch)]
    found = sorted((len(ids), learned) for s in samples for ids, learned in conversations_of(s))
    assert found == [
        (4, [3, 4]),
        (6, [4, 5, 6]),
        (10, [4, 5, 6, 7, 10]),
        (10, [5, 6, 7, 8, 9, 10]),
        (10, [10]),
    ]
    assert dataset.notes == (
        f"{long.name}: 5 of 6 conversations are longer than 10 tokens: 1 dropped, 4 shortened, "
        "1 of these within an answer, without its end",
    )


def test_dropping_leaves_out_what_does_not_fit(long):
    dataset = make(long, 10, overlong="drop")
    assert dataset.samples_per_epoch == 1
    assert conversations_of(dataset[0]) == [([1, 2, 3, 4], [3, 4])]
    assert dataset.notes == (
        f"{long.name}: 5 of 6 conversations are longer than 10 tokens: 5 dropped",
    )
    with pytest.raises(DataError, match="no conversation fits seq_length 3"):
        make(long, 3, overlong="drop")


@pytest.mark.parametrize("mask", [[0, 0, 0], [1, 0, 0]])
def test_a_source_that_teaches_nothing_is_refused_by_name(tmp_path, mask):
    """A first token is never predicted, so a target there does not count."""
    prefix = open_conversations(tmp_path / "silent", [([1, 2, 3], mask)] * 4 + [([5], [1])])
    with pytest.raises(DataError, match=r"silent: none of the 5 documents from 0 on has a super"):
        make(prefix)
    assert DataError.exit_code == 65


def test_supervision_is_looked_for_in_the_range_that_is_used(tmp_path):
    conversations = [([1, 2, 3], [0, 0, 0])] * 20_000 + [([1, 2, 3], [0, 1, 1])]
    prefix = open_conversations(tmp_path / "late", conversations)
    assert make(prefix).samples_per_epoch
    with pytest.raises(DataError, match="none of the 20000 documents"):
        make(prefix, documents=(0, 20_000))


def test_documents_of_several_sequences_are_refused(tmp_path):
    indexed = open_prefix(tmp_path / "data", [[1, 2], [3]])
    indexed.document_indices = indexed.document_indices[[0, 2]]
    with pytest.raises(DataError, match="1 documents of 2 sequences"):
        SFTDataset(indexed, np.ones(3, np.uint8), documents=(0, 1), seq_length=4, seed=0)
