"""Merging equals writing everything at once, and refuses what does not match."""

import json

import numpy as np
import pytest
from megatron.core.datasets import indexed_dataset as stock

from megatron_chimed.data.datasets.indexed import IndexedDataset
from megatron_chimed.data.datasets.sidecar import Rendering, SourceSummary, read_sidecar
from megatron_chimed.data.preprocessing.merging import MergeConfig, merge
from megatron_chimed.data.preprocessing.writer import SUFFIXES, IndexedWriter
from megatron_chimed.errors import ConfigError, DataError, OutputError, run_command
from tests.unit.data.prefixes import describe, write_prefix
from tests.unit.data.preprocessing.test_writer_stages import rankings, write
from tools import merge_datasets


def run(folder, *names, output="all", **options):
    inputs = tuple(str(folder / name) for name in names)
    return merge(MergeConfig(inputs=inputs, output_prefix=str(folder / output), **options))


def test_a_merge_has_the_bytes_of_one_big_prefix_and_of_megatrons_merge(tmp_path):
    parts = [[[1, 2, 3], [4]], [[5] * 100], [[6], [7, 8]]]
    for number, documents in enumerate(parts):
        write_prefix(tmp_path / f"part{number}", documents)
    write_prefix(tmp_path / "whole", sum(parts, []))
    sidecar = run(tmp_path, "part0", "part1", "part2")
    builder = stock.IndexedDatasetBuilder(str(tmp_path / "stock.bin"), dtype=np.uint16)
    for number in range(3):
        builder.add_index(str(tmp_path / f"part{number}"))
    builder.finalize(str(tmp_path / "stock.idx"))
    for suffix in (".bin", ".idx"):
        merged = (tmp_path / f"all{suffix}").read_bytes()
        assert merged == (tmp_path / f"whole{suffix}").read_bytes()
        assert merged == (tmp_path / f"stock{suffix}").read_bytes()
    whole = read_sidecar(tmp_path / "whole.meta.json")
    assert (sidecar.bin_sha256, sidecar.idx_sha256) == (whole.bin_sha256, whole.idx_sha256)
    assert (sidecar.documents, sidecar.tokens, sidecar.max_token_id) == (5, 107, 8)
    assert IndexedDataset(tmp_path / "all").sidecar == sidecar


def test_sources_keep_their_documents(tmp_path):
    for name, documents in (("a", 2), ("b", 3)):
        sources = (
            SourceSummary(file=f"{name}1", bytes=1, rows=1, documents=(0, 1)),
            SourceSummary(file=f"{name}2", bytes=1, rows=1, documents=(1, documents)),
        )
        write_prefix(tmp_path / name, [[1]] * documents, sources=sources, cleaning={name: 1})
    sidecar = run(tmp_path, "a", "b")
    ranges = {source.file: source.documents for source in sidecar.sources}
    assert ranges == {"a1": (0, 1), "a2": (1, 2), "b1": (2, 3), "b2": (3, 5)}
    cleaning = [[str(tmp_path / "a"), {"a": 1}], [str(tmp_path / "b"), {"b": 1}]]
    assert sidecar.cleaning == {"inputs": cleaning}
    assert f"--inputs {tmp_path}/a {tmp_path}/b --output-prefix {tmp_path}/all" in sidecar.command


def test_reports_of_equal_settings_add_up(tmp_path):
    rules = [{"rule": "normalize.blanks", "count": 2, "examples": []}]
    report = {"settings": {"normalize": True}, "seen": 3, "removed": 1, "rules": rules}
    for name in "ab":
        write_prefix(tmp_path / name, [[1]], cleaning=report)
    merged = run(tmp_path, "a", "b").cleaning
    assert (merged["settings"], merged["seen"], merged["removed"]) == ({"normalize": True}, 6, 2)
    assert [rule["count"] for rule in merged["rules"]] == [4]


def test_masks_and_ranks_are_merged_too(tmp_path):
    first, second = rankings([[0, 1], [2, 0, 0]]), rankings([[1, 0]], margins=[[0.1, 0.5]])
    write(tmp_path / "a", [first], "preference")
    write(tmp_path / "b", [second], "preference")
    write(tmp_path / "whole", [first, second], "preference")
    run(tmp_path, "a", "b")
    for suffix in SUFFIXES["preference"][1:]:
        if suffix != ".meta.json":
            merged = (tmp_path / f"all{suffix}").read_bytes()
            assert merged == (tmp_path / f"whole{suffix}").read_bytes(), suffix
    with IndexedWriter(tmp_path / "c", np.uint16, stage="sft") as writer:
        writer.add_document([1, 2], [0, 1])
        writer.finalize(lambda *sha256: describe(writer, *sha256))
    run(tmp_path, "c", "c", output="twice")
    mask = stock.IndexedDataset(str(tmp_path / "twice.mask"))
    assert [mask[i].tolist() for i in range(2)] == [[0, 1], [0, 1]]


RENDERING = Rendering(
    template="a", template_identity="1", targets="answers", seq_length=None, truncation="drop"
)
OTHER = Rendering(
    template="b", template_identity="2", targets="answers", seq_length=None, truncation="drop"
)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"tokenizer_sha256": "1" * 64}, "differ in tokenizer: '111"),
        ({"eod_id": 2}, "differ in end of document: 2 and None"),
        ({"rendering": OTHER}, "differ in template: '2' and None"),
        ({"dtype": np.int32}, "differ in element type: 'int32' and 'uint16'"),
    ],
)
def test_prefixes_that_do_not_fit_are_refused(tmp_path, facts, message):
    write_prefix(tmp_path / "a", [[1]])
    dtype = facts.pop("dtype", np.uint16)
    write_prefix(tmp_path / "b", [[1]], dtype, **facts)
    with pytest.raises(DataError, match=f"{tmp_path}/b and {tmp_path}/a {message}.*blend them"):
        run(tmp_path, "a", "b")
    assert not list(tmp_path.glob("*all*"))


def test_stages_are_not_mixed(tmp_path):
    write_prefix(tmp_path / "a", [[1]])
    write(tmp_path / "b", [rankings([[0, 1]])], "preference")
    with pytest.raises(DataError, match="differ in stage: 'preference' and 'pretrain'"):
        run(tmp_path, "a", "b")


def test_the_longer_limit_holds_for_both(tmp_path):
    for name, limit in (("a", 10), ("b", 20)):
        rendering = Rendering(**{**RENDERING.__dict__, "seq_length": limit})
        write_prefix(tmp_path / name, [[1]], rendering=rendering)
    assert run(tmp_path, "a", "b").rendering.seq_length == 20


def test_a_damaged_input_does_not_become_part_of_a_sound_output(tmp_path):
    write_prefix(tmp_path / "a", [[1, 2]])
    write_prefix(tmp_path / "b", [[3, 4]])
    (tmp_path / "b.bin").write_bytes(b"\0\0\0\0")
    with pytest.raises(DataError, match=r"b\.bin: its sha256 is .*, but the sidecar states"):
        run(tmp_path, "a", "b")
    assert not list(tmp_path.glob("*all*"))


def test_a_rank_file_of_other_rankings_is_refused(tmp_path):
    write(tmp_path / "a", [rankings([[0, 1]])], "preference")
    path = tmp_path / "a.rank.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "ranks": [[0, 1, 2]]}))
    with pytest.raises(DataError, match=r"a\.rank\.json: its sha256"):
        run(tmp_path, "a")


def test_what_cannot_be_merged_is_named(tmp_path):
    write_prefix(tmp_path / "a", [[1]])
    with pytest.raises(ConfigError, match=r"--inputs '.*nowhere': .*meta\.json does not exist"):
        run(tmp_path, "a", "nowhere")
    with pytest.raises(ConfigError, match="--output-prefix .* is one of --inputs"):
        run(tmp_path, "a", output="a", overwrite=True)
    with pytest.raises(ConfigError, match="--inputs names no prefix"):
        run(tmp_path)
    (tmp_path / "a.meta.json").unlink()
    with pytest.raises(DataError, match="the tokenizer that made"):
        run(tmp_path, "a")


def test_existing_output_stays_unless_told_otherwise(tmp_path):
    write_prefix(tmp_path / "a", [[1]])
    run(tmp_path, "a")
    with pytest.raises(OutputError, match=r"all\.idx exists"):
        run(tmp_path, "a")
    assert run(tmp_path, "a", "a", overwrite=True).documents == 2


def test_the_tool_takes_prefixes_and_index_files(tmp_path, capsys):
    write_prefix(tmp_path / "a", [[1, 2]])
    write_prefix(tmp_path / "b", [[3]])
    words = ["--inputs", f"{tmp_path}/a.idx", f"{tmp_path}/b", f"{tmp_path}/b.mask.idx"]
    words += ["--output-prefix", f"{tmp_path}/all"]
    assert merge_datasets.main(words) == 0
    assert "2 documents, 3 tokens of 2 prefixes" in capsys.readouterr().out
    assert run_command(lambda: merge_datasets.main(words)) == 73
    assert run_command(lambda: merge_datasets.main(["--inputs"])) == 78
