"""Masks, rankings and writers that resume where a killed one stopped."""

import json

import numpy as np
import pytest
from megatron.core.datasets import indexed_dataset as stock

from megatron_chimed.data.datasets.indexed import IndexedDataset
from megatron_chimed.data.datasets.sidecar import read_sidecar
from megatron_chimed.data.preprocessing import output_files
from megatron_chimed.data.preprocessing.documents import Documents, RankingGroups
from megatron_chimed.data.preprocessing.journal import WorkFolder
from megatron_chimed.data.preprocessing.writer import SUFFIXES, IndexedWriter, publish_sealed
from megatron_chimed.errors import DataError, OutputError
from megatron_chimed.files import sha256_file
from tests.unit.data.prefixes import describe


def rankings(groups, margins=None):
    """RankingGroups as lists of ranks; each candidate has three tokens, the prompt one."""
    sizes = [len(group) for group in groups]
    sequences = sum(sizes)
    return Documents(
        tokens=np.arange(3 * sequences) % 100,
        lengths=np.full(sequences, 3, np.int32),
        mask=np.tile([0, 1, 1], sequences).astype(np.uint8),
        groups=RankingGroups(
            candidates=np.array(sizes, np.int32),
            prompt_lengths=np.ones(len(groups), np.int32),
            ranks=np.array(sum(groups, []), np.int32),
            margins=np.array(sum(margins, []) if margins else [np.nan] * sequences),
        ),
    )


def write(prefix, batches, stage, **options):
    with IndexedWriter(prefix, np.uint16, stage=stage, **options) as writer:
        for batch in batches:
            writer.add(batch)
        return writer.finalize(lambda *sha256: describe(writer, *sha256))


def test_a_mask_lies_beside_the_tokens_and_megatron_opens_both(tmp_path):
    with IndexedWriter(tmp_path / "data", np.uint16, stage="sft") as writer:
        writer.add_document([5, 6, 7], [0, 1, 1])
        writer.add_documents(np.array([8, 9, 10]), [1, 2], [1, 0, 1])
        sidecar = writer.finalize(lambda *sha256: describe(writer, *sha256))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"data.bin", "data.idx", "data.mask.bin", "data.mask.idx", "data.meta.json"}
    mask = stock.IndexedDataset(str(tmp_path / "data.mask"))
    tokens = stock.IndexedDataset(str(tmp_path / "data"))
    assert [mask[i].tolist() for i in range(3)] == [[0, 1, 1], [1], [0, 1]]
    assert [tokens[i].tolist() for i in range(3)] == [[5, 6, 7], [8], [9, 10]]
    assert mask[0].dtype == np.uint8 and mask.document_indices.tolist() == [0, 1, 2, 3]
    assert set(sidecar.more_sha256) == {".mask.bin", ".mask.idx"}
    for suffix, sha256 in sidecar.more_sha256.items():
        assert sha256_file(tmp_path / f"data{suffix}") == sha256


def test_a_ranking_is_a_document_of_several_sequences(tmp_path):
    first = rankings([[0, 1], [2, 0, 0]])
    second = rankings([[1, 0]], margins=[[0.1, 0.5]])
    sidecar = write(tmp_path / "data", [first, second], "preference")
    indexed = IndexedDataset(tmp_path / "data.ranked")
    assert indexed.document_indices.tolist() == [0, 2, 5, 7]
    assert (sidecar.documents, sidecar.sequences, sidecar.tokens) == (3, 7, 21)
    mask = stock.IndexedDataset(str(tmp_path / "data.ranked.mask"))
    assert mask.document_indices.tolist() == [0, 2, 5, 7] and mask[6].tolist() == [0, 1, 1]
    assert json.loads((tmp_path / "data.rank.json").read_text()) == {
        "format_version": 1,
        "ranks": [[0, 1], [2, 0, 0], [1, 0]],
        "margins": [None, None, [0.1, 0.5]],
        "prompt_lengths": [1, 1, 1],
    }
    assert {path.name for path in tmp_path.iterdir()} == {
        f"data{suffix}" for suffix in SUFFIXES["preference"][1:]
    }


@pytest.mark.parametrize("groups", [0, 1, 4, 5, 11])
def test_ranks_are_written_whole_whatever_their_number(tmp_path, groups, monkeypatch):
    monkeypatch.setattr(output_files, "BLOCK_GROUPS", 4)
    ranks = [[0] * (i % 3) + [1, 2] for i in range(groups)]
    write(tmp_path / "data", [rankings(ranks)] if groups else [], "preference")
    value = json.loads((tmp_path / "data.rank.json").read_text())
    assert value["ranks"] == ranks and value["margins"] is None
    assert value["prompt_lengths"] == [1] * groups


def test_keeping_some_documents_keeps_all_that_is_theirs():
    batch = rankings([[0, 1], [2, 0, 0], [1, 0]])
    kept = batch.keep(np.array([True, False, True]))
    assert len(kept) == 2 and kept.groups.ranks.tolist() == [0, 1, 1, 0]
    assert kept.tokens.tolist() == [*range(6), *range(15, 21)]
    assert len(kept.mask) == len(kept.tokens) and kept.lengths.tolist() == [3] * 4
    assert batch.keep(np.array([True] * 3)) is batch


@pytest.mark.parametrize("stage", ["pretrain", "sft", "preference"])
def test_a_writer_goes_on_from_what_was_synced(tmp_path, stage):
    batches = [rankings([[0, 1], [2, 0, 0]]), rankings([[1, 0]])]
    if stage != "preference":
        batches = [Documents(tokens=b.tokens, lengths=b.lengths, mask=b.mask) for b in batches]
    if stage == "pretrain":
        batches = [Documents(tokens=b.tokens, lengths=b.lengths) for b in batches]
    (tmp_path / "whole").mkdir()
    write(tmp_path / "whole" / "data", batches, stage)
    (tmp_path / "torn").mkdir()
    prefix = tmp_path / "torn" / "data"
    with WorkFolder(prefix) as folder:
        with IndexedWriter(prefix, np.uint16, stage=stage, folder=folder) as writer:
            writer.add(batches[0])
            state = json.loads(json.dumps(writer.sync()))
            writer.add(batches[0])  # written, but never counted
        with IndexedWriter(prefix, np.uint16, stage=stage, folder=folder, state=state) as writer:
            writer.add(batches[1])
            writer.seal(lambda *sha256: describe(writer, *sha256))
            publish_sealed(folder.path, prefix, stage)
    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("whole", "torn")
    ]
    assert contents[0] == contents[1] and len(contents[0]) == len(SUFFIXES[stage]) - 1


def test_a_spool_that_lost_data_is_refused(tmp_path):
    prefix = tmp_path / "data"
    with WorkFolder(prefix) as folder:
        with IndexedWriter(prefix, np.uint16, folder=folder) as writer:
            writer.add_document([1, 2, 3])
            state = writer.sync()
        (folder.path / ".bin").write_bytes(b"x")
        with pytest.raises(DataError, match=r"1 bytes, but the journal beside it counts 6"):
            IndexedWriter(prefix, np.uint16, folder=folder, state=state)


@pytest.mark.parametrize(("old", "new"), [("sft", "pretrain"), ("preference", "sft")])
def test_the_files_of_another_stage_do_not_outlive_it(tmp_path, old, new):
    groups = rankings([[0, 1]])
    plain = {"tokens": groups.tokens, "lengths": groups.lengths}
    batches = {
        "pretrain": Documents(**plain),
        "sft": Documents(**plain, mask=groups.mask),
        "preference": groups,
    }
    write(tmp_path / "data", [batches[old]], old)
    with pytest.raises(OutputError, match="exists already. Name another --output-prefix"):
        IndexedWriter(tmp_path / "data", np.uint16, stage=new)
    write(tmp_path / "data", [batches[new]], new, overwrite=True)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"data{suffix}" for suffix in SUFFIXES[new][1:]}
    read_sidecar(tmp_path / "data.meta.json")


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    (tmp_path / ".tmp-data.work").mkdir()
    (tmp_path / ".tmp-data.work" / "lock").write_text("process 99999999 on elsewhere")
    with WorkFolder(tmp_path / "data") as folder:
        assert "99999999" not in (folder.path / "lock").read_text()
        with pytest.raises(OutputError, match=r"is being written by process \d+ on .*Wait for it"):
            WorkFolder(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []
