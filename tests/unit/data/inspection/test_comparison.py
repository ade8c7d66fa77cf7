"""The first difference is found, wherever and in whatever it is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_chimed.data.datasets.prefix import open_prefix
from megatron_chimed.data.inspection import comparison
from megatron_chimed.data.inspection.comparison import compare_facts, first_difference
from tests.unit.data.packed_prefixes import write_conversations, write_groups
from tests.unit.data.prefixes import write_prefix

GROUP = ([1, 2], [([3], 0), ([4], 1)])
OTHER = ([1, 2], [([3], 1), ([4], 0)])


def differ(left, right):
    found = first_difference(open_prefix(str(left)), open_prefix(str(right)))
    return found and (found.document, found.token)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=9),
    st.integers(0, 8),
    st.lists(st.integers(0, 9), max_size=4),
)
def test_it_is_the_first_document_that_is_not_equal(tmp_path_factory, documents, place, changed):
    others = [changed if i == place else ids for i, ids in enumerate(documents)]
    folder = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "BLOCK_TOKENS", 3)
        patch.setattr(comparison, "BLOCK_DOCUMENTS", 4)
        found = differ(
            write_prefix(folder / "a", documents), write_prefix(folder / "b", others, np.int32)
        )
    if others == documents:
        assert found is None
    else:
        pairs = zip(documents[place], changed, strict=False)
        unequal = (i for i, (a, b) in enumerate(pairs) if a != b)
        assert found == (place, next(unequal, min(len(documents[place]), len(changed))))


def test_more_documents_are_no_other_documents(tmp_path):
    left = write_prefix(tmp_path / "a", [[1], [2]])
    right = write_prefix(tmp_path / "b", [[1], [2], [3]])
    assert differ(left, right) is None
    facts = compare_facts(open_prefix(str(left)), open_prefix(str(right)))
    assert [item.what for item in facts] == ["documents", "sequences", "tokens", "max_token_id"]


def test_masks_and_ranks_count(tmp_path):
    left = write_conversations(tmp_path / "a", [([1, 2, 3], [0, 1, 1])] * 2)
    right = write_conversations(tmp_path / "b", [([1, 2, 3], [0, 1, 1]), ([1, 2, 3], [0, 1, 0])])
    assert differ(left, right) == (1, 2)
    left = write_groups(tmp_path / "c", [GROUP, GROUP])
    right = write_groups(tmp_path / "d", [GROUP, OTHER])
    assert differ(left, right) == (1, None)


def test_facts_of_index_and_sidecar_are_compared(tmp_path):
    left = write_prefix(tmp_path / "a", [[1]], cleaning={"rules": 1, "on": True})
    right = write_prefix(
        tmp_path / "b", [[1]], np.int32, cleaning={"rules": 2, "on": True}, tokenizer_name="x" * 500
    )
    facts = {
        item.what: (item.left, item.right)
        for item in compare_facts(open_prefix(str(left)), open_prefix(str(right)))
    }
    assert facts == {
        "dtype": ("uint16", "int32"),
        "tokenizer_name": ("test.model", "x" * 157 + "..."),
        "cleaning.rules": ("1", "2"),
    }
    right.with_suffix(".meta.json").unlink()
    facts = {item.what: item for item in compare_facts(*map(open_prefix, map(str, (left, right))))}
    assert facts["tokenizer_name"].right == "(none)"
