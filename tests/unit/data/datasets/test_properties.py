"""Any documents survive writing and reading, by our code and Megatron's, in any combination."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets import indexed_dataset as stock

from megatron_chimed.data.datasets.indexed import DTYPES, IndexedDataset
from megatron_chimed.data.datasets.prefix import open_prefix
from megatron_chimed.data.inspection.verification import verify_prefix
from megatron_chimed.data.preprocessing.documents import Documents, RankingGroups
from megatron_chimed.data.preprocessing.writer import IndexedWriter
from tests.unit.data.prefixes import describe

INTEGERS = [dtype for dtype in DTYPES.values() if dtype.kind in "iu"]
FEW = settings(max_examples=40, deadline=None)


@st.composite
def documents(draw):
    """An element type and documents, each a list of sequences of its ids."""
    dtype = draw(st.sampled_from(INTEGERS))
    edges = st.sampled_from([0, 1, int(np.iinfo(dtype).max)])
    sequence = st.lists(st.integers(0, np.iinfo(dtype).max) | edges, max_size=20)
    return dtype, draw(st.lists(st.lists(sequence, max_size=4), max_size=8))


@st.composite
def rankings(draw):
    """RankingGroups: prompt, and per candidate an answer, a rank and a margin or None."""
    ids = st.integers(3, 900)
    groups = []
    for _ in range(draw(st.integers(0, 6))):
        answers = st.lists(ids, min_size=1, max_size=6)
        candidates = draw(st.lists(answers, min_size=2, max_size=5, unique_by=tuple))
        ranks = [0, 1, *draw(st.lists(st.integers(0, 3), min_size=3, max_size=3))]
        ranks = draw(st.permutations(ranks[: len(candidates)]))
        has_margins = draw(st.booleans())
        margins = [draw(st.floats(-9, 9, width=32)) if has_margins else None for _ in candidates]
        groups.append((draw(st.lists(ids, max_size=5)), candidates, ranks, margins))
    return groups


def write_stock(prefix, dtype, many):
    builder = stock.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype.type)
    for sequences in many:
        ids = [index for sequence in sequences for index in sequence]
        builder.add_document(np.array(ids, dtype), [len(sequence) for sequence in sequences])
    builder.finalize(f"{prefix}.idx")


def flatten(many):
    return [sequence for sequences in many for sequence in sequences]


@FEW
@given(documents())
def test_what_megatron_writes_we_read(tmp_path_factory, drawn):
    dtype, many = drawn
    prefix = tmp_path_factory.mktemp("theirs") / "data"
    write_stock(prefix, dtype, many)
    indexed = IndexedDataset(prefix)
    assert indexed.dtype == dtype
    assert [sequence.tolist() for sequence in map(indexed.get, range(len(indexed)))] == flatten(
        many
    )
    assert np.diff(indexed.document_indices).tolist() == [len(sequences) for sequences in many]
    lengths = [sum(map(len, sequences)) for sequences in many]
    assert indexed.document_lengths(0, len(many)).tolist() == lengths
    assert all(finding.verdict != "WRONG" for finding in verify_prefix(str(prefix)))


@FEW
@given(documents(), st.data())
def test_what_we_write_in_any_batches_is_what_megatron_writes(tmp_path_factory, drawn, data):
    dtype, many = drawn
    singles = flatten(many)  # a document of ours is one sequence
    folder = tmp_path_factory.mktemp("ours")
    with IndexedWriter(folder / "data", dtype) as writer:
        start = 0
        while start < len(singles):
            batch = singles[start : start + data.draw(st.integers(1, len(singles)))]
            ids = np.array([index for ids in batch for index in ids], np.int64)
            writer.add_documents(ids, [len(ids) for ids in batch])
            start += len(batch)
        writer.finalize(lambda *sha256: describe(writer, *sha256, vocab_size=2**63))
    write_stock(folder / "theirs", dtype, [[ids] for ids in singles])
    for suffix in (".bin", ".idx"):
        theirs = (folder / f"theirs{suffix}").read_bytes()
        assert (folder / f"data{suffix}").read_bytes() == theirs
    if any(singles):  # Megatron's reader cannot map an empty file
        opened = stock.IndexedDataset(str(folder / "data"))
        assert [opened[i].tolist() for i in range(len(opened))] == singles
        assert opened.document_indices.tolist() == list(range(len(singles) + 1))


@FEW
@given(st.lists(st.lists(st.tuples(st.integers(0, 999), st.booleans()), max_size=12), max_size=8))
def test_any_masks_come_back_beside_their_tokens(tmp_path_factory, conversations):
    prefix = tmp_path_factory.mktemp("masks") / "data"
    with IndexedWriter(prefix, np.uint16, stage="sft") as writer:
        for pairs in conversations:
            writer.add_document([index for index, _ in pairs], [int(mask) for _, mask in pairs])
        writer.finalize(lambda *sha256: describe(writer, *sha256))
    opened = open_prefix(str(prefix))
    assert opened.indexed.tokens.tolist() == [
        index for pairs in conversations for index, _ in pairs
    ]
    assert opened.targets.tolist() == [int(mask) for pairs in conversations for _, mask in pairs]
    teaches = [any(mask for _, mask in pairs[1:]) for pairs in conversations]
    found = {finding.what: finding.verdict for finding in verify_prefix(str(prefix))}
    assert found["supervised tokens"] == ("ok" if all(teaches) else "WRONG")
    assert found["mask"] == "ok"


@FEW
@given(rankings())
def test_any_rankings_come_back_and_pass_the_check(tmp_path_factory, groups):
    prefix = tmp_path_factory.mktemp("ranks") / "data"
    rows = [(p, a, r, m) for p, *rest in groups for a, r, m in zip(*rest, strict=True)]
    ids = [[*prompt, *answer] for prompt, answer, _, _ in rows]
    batch = Documents(
        tokens=np.array([index for one in ids for index in one], np.int64),
        lengths=np.array([len(one) for one in ids], np.int32),
        mask=np.array([i for p, a, _, _ in rows for i in [0] * len(p) + [1] * len(a)], np.uint8),
        groups=RankingGroups(
            candidates=np.array([len(answers) for _, answers, _, _ in groups], np.int32),
            prompt_lengths=np.array([len(prompt) for prompt, *_ in groups], np.int32),
            ranks=np.array([rank for _, _, rank, _ in rows], np.int32),
            margins=np.array([np.nan if m is None else m for *_, m in rows], np.float64),
        ),
    )
    with IndexedWriter(prefix, np.uint16, stage="preference") as writer:
        writer.add(batch)
        writer.finalize(lambda *sha256: describe(writer, *sha256))
    opened = open_prefix(str(prefix))
    assert [opened.indexed[i].tolist() for i in range(len(opened.indexed))] == ids
    assert opened.rankings.ranks.tolist() == [rank for _, _, rank, _ in rows]
    assert opened.rankings.margins.tolist() == [margin or 0 for *_, margin in rows]
    assert opened.rankings.prompt_lengths.tolist() == [len(prompt) for prompt, *_ in groups]
    found = {finding.what: finding.verdict for finding in verify_prefix(str(prefix))}
    names = ("mask", "ranks", "prompts", "prompt tokens", "candidates")
    assert [found[name] for name in names] == ["ok"] * len(names)
