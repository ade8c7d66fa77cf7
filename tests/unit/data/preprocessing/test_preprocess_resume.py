"""Which interrupted runs resume, which start from scratch, and that runs never interfere."""

import csv
import dataclasses
import gzip
import json
import os
import shutil

import pyarrow
import pyarrow.parquet
import pytest

from megatron_chimed.data.cleaning.config import CleaningConfig
from megatron_chimed.data.datasets.indexed import IndexedDataset
from megatron_chimed.data.preprocessing import preprocess as preprocessing
from megatron_chimed.data.preprocessing.journal import WorkFolder
from megatron_chimed.data.preprocessing.plan import PreprocessConfig, make_plan
from megatron_chimed.data.preprocessing.preprocess import preprocess
from megatron_chimed.data.reading import row_block
from megatron_chimed.errors import ConfigError, DataError, OutputError
from tests.unit.data.prefixes import renamed
from tests.unit.tokenizer.samples import LINES, train_model

ROWS = 40


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two inputs of ten blocks each, journalled after every block."""
    monkeypatch.setattr(row_block, "BLOCK_BYTES", 400)
    monkeypatch.setattr(preprocessing, "JOURNAL_SECONDS", 0.0)
    (tmp_path / "tokenizer.model").write_bytes(train_model())
    for name in ("a.txt", "b.txt"):
        rows = [f"{name} {n}. {LINES[n % 5]}\n" for n in range(ROWS)]
        (tmp_path / name).write_text("".join(rows))
    return tmp_path


def config_of(folder, output="out", **options):
    options = {"tokenizer": str(folder / "tokenizer.model"), **options}
    return PreprocessConfig(
        inputs=(str(folder / "a.txt"), str(folder / "b.txt")),
        output_prefix=str(folder / output / "data"),
        **options,
    )


def interrupt(config, blocks_done=12):
    """Stops as ^C does; returns what was said."""
    left, said = [blocks_done], []

    def stop(progress):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preprocess(config, stop, said.append)
    return said


def go_on(config):
    """Runs to the end; returns what was said and the first progress."""
    said, shown = [], []
    preprocess(config, shown.append, said.append)
    return said, shown[0]


def content(folder, output="out"):
    return {
        path.name: renamed(path.read_bytes(), folder / output, "OUT")
        for path in (folder / output).iterdir()
    }


def test_an_interrupted_run_goes_on_and_says_where(folder):
    config = config_of(folder)
    said = interrupt(config)
    assert said == [
        f"progress is kept in {folder}/out/.tmp-data.work: run the same command again to resume"
    ]
    assert [path.name for path in (folder / "out").iterdir()] == [".tmp-data.work"]
    said, first = go_on(config)
    assert len(said) == 1 and said[0].startswith("resumed at 0.0 of 0.0 MB: ")
    assert said[0].endswith(f"{first.documents} documents are done")
    assert first.documents > ROWS / 4 and 0 < first.bytes < first.total_bytes
    preprocess(config_of(folder, "whole"))
    assert content(folder) == content(folder, "whole")


def write_gz(path, rows):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(lines.encode(), mtime=0))


def write_array(path, rows):
    path.write_text(json.dumps(rows, indent=1))


def write_table(path, rows):
    with open(path, "w", newline="") as stream:
        table = csv.DictWriter(stream, rows[0].keys())
        table.writeheader()
        table.writerows(rows)


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=7)


@pytest.mark.parametrize("write", [write_gz, write_array, write_table, write_parquet])
def test_every_container_goes_on_within_a_file(folder, write):
    for name in ("a.txt", "b.txt"):
        write(folder / name, [{"text": f"{n}.\n{LINES[n % 5]}", "id": n} for n in range(ROWS)])
    preprocess(config_of(folder, "whole"))
    for blocks_done in (2, 9):
        interrupt(config_of(folder), blocks_done)
        assert go_on(config_of(folder))[1].documents > 0
        assert content(folder) == content(folder, "whole")
        shutil.rmtree(folder / "out")


@pytest.mark.parametrize(
    "options", [{"workers": 2}, {"max_bad_rate": 0.5}, {"overwrite": True}], ids=str
)
def test_what_does_not_change_the_tokens_may_change(folder, options):
    interrupt(config_of(folder))
    said, _ = go_on(config_of(folder, **options))
    assert said[0].startswith("resumed at")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"append_eod": False}, "stage"),
        ({"text_key": "body"}, "reading options"),
        ({"format": "qa", "max_bad_rate": 0.9}, "formats"),
        ({"cleaning": CleaningConfig(normalize=True)}, "cleaning"),
        ({"stage": "sft", "template": "ziya"}, "stage, template"),
    ],
)
def test_a_run_of_another_kind_starts_afresh_and_says_why(folder, options, names):
    interrupt(config_of(folder))
    said = []
    try:
        preprocess(config_of(folder, **options), say=said.append)
    except DataError:  # texts are no conversations: the run got as far as that
        assert "stage" in options or "format" in options
    assert "holds a run with different " + names + ": it is discarded" in said[0]


def test_changed_inputs_and_tokenizers_start_afresh(folder):
    config = config_of(folder)
    interrupt(config)
    path = folder / "b.txt"
    path.write_text(path.read_text() + "more\n")
    said, first = go_on(config)
    assert "holds a run with different inputs" in said[0] and first.documents == 0
    assert IndexedDataset(folder / "out" / "data").num_documents == 2 * ROWS + 1
    interrupt(config_of(folder, "other"))
    (folder / "tokenizer.model").write_bytes(train_model(390))
    said, _ = go_on(config_of(folder, "other"))
    assert "holds a run with different tokenizer" in said[0]


def test_tables_beside_an_input_are_a_part_of_it(folder):
    (folder / "answer.csv").write_text("ans_id,question_id,content\n1,2,fever\n")
    plans = []
    for question in ("cough", "coughs"):
        (folder / "question.csv").write_text(f"question_id,content\n2,{question}\n")
        config = dataclasses.replace(config_of(folder), inputs=(str(folder / "answer.csv"),))
        plans.append(make_plan(config))
    assert plans[0].fingerprint["inputs"] != plans[1].fingerprint["inputs"]
    with pytest.raises(DataError, match=r"question\.csv changed while it was read"):
        plans[0].check_inputs_unchanged()


def test_a_bad_row_near_the_end_does_not_cost_what_was_done(folder):
    path = folder / "b.txt"
    path.write_bytes(path.read_bytes() + b"\xff\n")
    with pytest.raises(DataError, match=rf"b\.txt:{ROWS + 1}:.*invalid UTF-8.*--max-bad-rate"):
        preprocess(config_of(folder))
    said, first = go_on(config_of(folder, max_bad_rate=0.1))
    assert said[0].startswith("resumed at") and first.documents > ROWS
    sidecar = IndexedDataset(folder / "out" / "data").sidecar
    assert (sidecar.documents, sidecar.sources[1].quarantined) == (2 * ROWS, 1)


def test_a_settled_bad_row_counts_against_a_stricter_rate(folder):
    path = folder / "a.txt"
    path.write_bytes(b"\xff\n" + path.read_bytes())
    interrupt(config_of(folder, max_bad_rate=0.5))
    with pytest.raises(DataError, match="1 of 81 rows are malformed, more than --max-bad-rate 0.0"):
        preprocess(config_of(folder))


def test_an_input_that_changes_while_it_is_read_is_an_error(folder):
    path = folder / "b.txt"

    def touch(progress):
        os.utime(path, (0, 0))

    with pytest.raises(DataError, match=r"b\.txt changed while it was read"):
        preprocess(config_of(folder), touch)
    assert not list((folder / "out").glob("data*"))


def test_two_runs_of_one_prefix_do_not_meet(folder):
    config = config_of(folder)
    with WorkFolder(config.output_prefix):
        with pytest.raises(OutputError, match=r"is being written by process \d+"):
            preprocess(config)
    preprocess(config)


def test_a_torn_journal_starts_afresh(folder):
    config = config_of(folder)
    interrupt(config)
    (folder / "out" / ".tmp-data.work" / "journal.json").write_text('{"finger')
    said, first = go_on(config)
    assert said == [] and first.documents == 0


def test_what_the_disk_lost_is_done_again(folder):
    config = config_of(folder)
    interrupt(config)
    (folder / "out" / ".tmp-data.work" / ".bin").unlink()
    said, first = go_on(config)
    assert "holds less data than its journal counts" in said[0] and first.documents == 0
    preprocess(config_of(folder, "whole"))
    assert content(folder) == content(folder, "whole")


def test_a_finished_run_whose_folder_is_left_is_complete(folder):
    config = config_of(folder)
    sidecar = preprocess(config)
    work = folder / "out" / ".tmp-data.work"
    work.mkdir()
    said = []
    assert preprocess(config, say=said.append) == sidecar
    assert "is complete" in said[0] and not work.exists()
    work.mkdir()
    with pytest.raises(OutputError, match=r"data\.idx exists"):  # another command
        preprocess(config_of(folder, append_eod=False))


def test_a_finished_run_is_not_done_again(folder):
    config = config_of(folder)
    interrupt(config)
    preprocess(config)
    with pytest.raises(OutputError, match=r"data\.idx exists"):
        preprocess(config)
    assert len(list((folder / "out").iterdir())) == 3


def test_a_refused_run_leaves_one_that_can_go_on(folder):
    config = config_of(folder)
    interrupt(config)
    (folder / "out" / "data.bin").write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"data\.bin exists"):
        preprocess(config)
    (folder / "out" / "data.bin").unlink()
    assert go_on(config)[0][0].startswith("resumed at")


def test_a_config_error_touches_no_run(folder):
    interrupt(config_of(folder))
    before = content(folder / "out", ".tmp-data.work")
    with pytest.raises(ConfigError, match="does not exist"):
        preprocess(config_of(folder, tokenizer=str(folder / "nowhere")))
    assert content(folder / "out", ".tmp-data.work") == before


def test_duplicates_are_the_same_after_an_interruption(folder):
    path = folder / "b.txt"
    path.write_text((folder / "a.txt").read_text())
    cleaning = CleaningConfig(deduplicate="exact", normalize=True)
    config = config_of(folder, cleaning=cleaning)
    interrupt(config)
    sidecar = preprocess(config)
    assert sidecar.sources[1].removed == {"exact_duplicate": ROWS}
    preprocess(config_of(folder, "whole", cleaning=cleaning, workers=2))
    assert content(folder) == content(folder, "whole")
    assert sidecar.cleaning["removed"] == ROWS and "found" not in sidecar.cleaning


@pytest.mark.parametrize("is_removed", [False, True])
def test_the_questions_found_are_the_same_after_an_interruption(folder, is_removed):
    questions = ["关于婴儿添加辅食的原则，错误的说法是", "脊髓灰质炎疫苗的初种年龄为出生后几个月"]
    exam = folder / "exam.jsonl"
    exam.write_text("\n".join(json.dumps({"question": question}) for question in questions))
    for name in ("a.txt", "b.txt"):
        lines = (folder / name).read_text().splitlines()
        lines[::20] = [f"{name} {questions[0]}", f"{name} {questions[1][4:]}{questions[1]}"]
        (folder / name).write_text("\n".join(lines))
    cleaning = CleaningConfig(decontaminate=(str(exam),), remove_contaminated=is_removed)
    config = config_of(folder, cleaning=cleaning)
    interrupt(config)
    said, _ = go_on(config)
    assert said[0].startswith("resumed at")
    (overlap,) = IndexedDataset(folder / "out" / "data").sidecar.cleaning["decontamination"]
    counts = {"kept": 0, "removed": 2} if is_removed else {"kept": 2, "removed": 0}
    assert overlap["matches"] == [
        {"line": line, "question": question, "score": 1.0, **counts}
        for line, question in enumerate(questions, start=1)
    ]
    preprocess(config_of(folder, "whole", cleaning=cleaning, workers=2))
    assert content(folder) == content(folder, "whole")
