"""Views show what training reads."""

import io

import numpy as np
import pytest
from rich.console import Console

from megatron_chimed.data.datasets.config import DataConfig
from megatron_chimed.data.datasets.prefix import open_prefix
from megatron_chimed.data.inspection.print_views import LAYOUTS, decode, print_view, spell, visible
from megatron_chimed.data.inspection.statistics import open_samples
from megatron_chimed.data.inspection.token_views import NO_TARGET, runs, view_document, view_sample
from megatron_chimed.tokenizer import SentencePieceTokenizer
from tests.unit.data.packed_prefixes import answered, write_conversations, write_groups
from tests.unit.data.prefixes import write_prefix
from tests.unit.tokenizer.samples import train_model

GROUPS = [([10, 11], [([12, 13], 1), ([14], 0)]), ([20], [([21], 0), ([22], 1), ([23], 1)])]


def samples(prefix, tokenizer=None, **options):
    opened = open_prefix(str(prefix))
    config = DataConfig(train=str(prefix), seq_length=12, **options)
    return open_samples(config, opened, seed=1, tokenizer=tokenizer).train


def joined(view, name):
    return np.concatenate([getattr(section, name) for section in view.sections]).tolist()


def paths(tmp_path, stage):
    if stage == "pretrain":
        documents = [[*range(i, i + 9), 2] for i in range(10, 90, 20)]
        return write_prefix(tmp_path / "data", documents, eod_id=2)
    if stage == "sft":
        return write_conversations(tmp_path / "data", answered([5, 4, 7, 10, 3]))
    return write_groups(tmp_path / "data", GROUPS)


@pytest.mark.parametrize("stage", ["pretrain", "sft", "preference"])
def test_a_sample_is_shown_as_it_is_read(tmp_path, stage):
    options = {"reset_attention_at_eod": True, "reset_position_ids": True, "eod_mask_loss": True}
    dataset = samples(paths(tmp_path, stage), **(options if stage == "pretrain" else {}))
    for index in range(dataset.samples_per_epoch):
        sample, view = dataset[index], view_sample(dataset, index)
        padding = sum(section.padding for section in view.sections)
        shown = len(sample["tokens"]) - padding
        assert not sample["loss_mask"][shown:].any() and not sample["tokens"][shown:].any()
        for field, name in (
            ("tokens", "tokens"),
            ("targets", "labels"),
            ("learned", "loss_mask"),
            ("positions", "position_ids"),
        ):
            assert joined(view, field) == sample[name][:shown].tolist()
        lengths = np.diff(np.flatnonzero(np.diff(sample["segment_ids"], prepend=-1, append=-1)))
        assert [len(s.tokens) + s.padding for s in view.sections] == lengths.tolist()
        assert dataset.locate(index) in view.title


def test_a_sample_without_segments_is_one_section(tmp_path):
    [section] = view_sample(samples(paths(tmp_path, "pretrain")), 0).sections
    assert section.caption == "segment 0, 12 tokens" and section.positions.tolist() == [*range(12)]


def test_candidates_carry_their_rank(tmp_path):
    dataset = samples(paths(tmp_path, "preference"))
    views = [view_sample(dataset, index) for index in range(dataset.samples_per_epoch)]
    assert sorted(section.caption for view in views for section in view.sections) == [
        "padding, 5 tokens",
        "padding, 6 tokens",
        "segment 0, 2 tokens, group 0, rank 0, prompt of 1 tokens",
        "segment 0, 4 tokens, group 0, rank 1, prompt of 2 tokens",
        "segment 1, 2 tokens, group 0, rank 1, prompt of 1 tokens",
        "segment 1, 3 tokens, group 0, rank 0, prompt of 2 tokens",
        "segment 2, 2 tokens, group 0, rank 1, prompt of 1 tokens",
    ]


def test_a_document_has_the_mask_of_its_targets(tmp_path):
    prefix = open_prefix(str(paths(tmp_path, "sft")))
    view = view_document(prefix, 1)
    assert view.title == "document 1: 4 tokens"
    [section] = view.sections
    assert section.tokens.tolist() == [5, 6, 7, 8]
    assert section.targets.tolist() == [6, 7, 8, NO_TARGET]
    assert section.learned.tolist() == [0, 1, 1, 0]
    assert [(kind, section.tokens[here].tolist()) for kind, here in runs(section)] == [
        (False, [5, 6]),
        (True, [7, 8]),
    ]


def test_a_document_of_rankings_has_a_section_per_candidate(tmp_path):
    prefix = open_prefix(str(paths(tmp_path, "preference")))
    view = view_document(prefix, 1)
    assert [section.tokens.tolist() for section in view.sections] == [[20, 21], [20, 22], [20, 23]]
    assert view.sections[1].caption == "candidate 1, 2 tokens, rank 1, prompt of 1 tokens"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("has_colour", [True, False])
def test_painting_says_in_words_what_colours_say(tmp_path, layout, has_colour):
    tokenizer = SentencePieceTokenizer(train_model())
    prefix = write_conversations(tmp_path / "data", [([300, 2, 301, 999], [0, 0, 1, 1])])
    stream = io.StringIO()
    colours = "truecolor" if has_colour else None
    console = Console(file=stream, width=120, force_terminal=has_colour, color_system=colours)
    print_view(view_document(open_prefix(prefix), 0), tokenizer, console, layout=layout)
    text = stream.getvalue()
    assert ("\x1b[" in text) == has_colour
    if layout == "text" and not has_colour:
        lines = [line.strip() for line in text.splitlines()[2:]]
        assert [line.split(" | ")[0] for line in lines] == ["given", "learned"]
        assert lines[0].endswith("</s>") and lines[1].endswith("301 999")
    if layout == "tokens" and not has_colour:
        rows = [line.split() for line in text.splitlines()[3:]]
        assert [row[3] for row in rows] == ["0", "1", "1"] + rows[3][3:4]
        assert rows[0][4:] == ["2", "</s>"] and rows[2][4:] == [
            "999",
            *spell(999, tokenizer).split(),
        ]


def test_what_would_steer_a_terminal_is_escaped():
    assert visible("发热 a") == "发热 a"
    assert visible("\x1b[31m\n\t") == "\\x1b[31m\\n\\t"


def test_ids_that_a_tokenizer_lacks_do_not_stop_the_view():
    tokenizer = SentencePieceTokenizer(train_model())
    assert spell(-1, tokenizer) == spell(400, tokenizer) == "(not in the vocabulary)"
    assert decode([5, 400], tokenizer) == "5 400"
