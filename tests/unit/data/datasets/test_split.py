"""Documents are split like Megatron does, and no part with a weight is empty."""

import pytest

from megatron_chimed.data.datasets.split import parse_split, split_documents
from megatron_chimed.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("text", "documents"),
    [("969,30,1", 1000), ("969,30,1", 1237), ("8,1,1", 99), ("0.7,0.2,0.1", 77), ("1,1", 3)],
)
def test_borders_are_megatrons(text, documents):
    from megatron.core.datasets.blended_megatron_dataset_config import (
        convert_split_vector_to_split_matrix,
    )
    from megatron.core.datasets.utils import normalize

    weights = parse_split(text)
    matrix = convert_split_vector_to_split_matrix(normalize(list(weights)))
    expected = [
        None if part is None else tuple(int(round(border * documents)) for border in part)
        for part in matrix
    ]
    assert split_documents(weights, documents, "data") == expected


def test_missing_weights_are_zero_and_give_none():
    assert parse_split("9,1") == (9.0, 1.0, 0.0)
    assert split_documents((9.0, 1.0, 0.0), 10, "data") == [(0, 9), (9, 10), None]
    assert split_documents((1.0, 0.0, 1.0), 4, "data") == [(0, 2), None, (2, 4)]


@pytest.mark.parametrize("text", ["", "a,b", "1,2,3,4", "-1,2", "0,0,0", "nan,1", "inf", "1;2"])
def test_what_is_no_split_is_refused(text):
    with pytest.raises(ConfigError, match='is not up to three weights .* "969,30,1"'):
        parse_split(text)


def test_a_part_without_documents_is_an_error():
    with pytest.raises(DataError, match="969,30,1 of 100 documents leaves none for test"):
        split_documents((969.0, 30.0, 1.0), 100, "data")
