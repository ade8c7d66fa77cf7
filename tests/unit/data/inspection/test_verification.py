"""`verify_prefix` finds faults that opening cannot, locates the first, and never stops early."""

import json

import numpy as np
import pytest

from megatron_chimed.data.inspection import token_blocks
from megatron_chimed.data.inspection.verification import verify_prefix
from megatron_chimed.errors import ConfigError
from megatron_chimed.files import sha256_file
from megatron_chimed.tokenizer import SentencePieceTokenizer
from tests.unit.data.packed_prefixes import write_conversations, write_groups
from tests.unit.data.prefixes import edit_sidecar, write_prefix
from tests.unit.tokenizer.samples import train_model

DOCUMENTS = [[5, 6, 2], [7, 2], [2]]
CONVERSATIONS = [([5, 6, 2], [0, 1, 1]), ([7, 8, 2, 9, 2], [0, 1, 1, 0, 1])]
GROUPS = [([1, 2], [([3, 4], 0), ([5], 1)]), ([6], [([7], 1), ([8, 9], 0), ([7, 7], 1)])]
SOURCES = (
    {"file": "a.txt", "bytes": 1, "rows": 2, "documents": (0, 2), "examples": 2, "tokens": 5},
    {"file": "b.txt", "bytes": 1, "rows": 1, "documents": (2, 3), "examples": 1, "tokens": 1},
)


def whole(documents, tokens, **counts):
    """One source that holds all."""
    source = {"file": "a.json", "bytes": 1, "rows": documents, "documents": (0, documents)}
    return [{**source, "examples": documents, "tokens": tokens, **counts}]


def edit(prefix, **facts):
    """Replaces fields of a sidecar, and the hashes by those of the files as they are."""
    path = prefix.with_name(f"{prefix.name}.meta.json")
    value = json.loads(path.read_text())
    name = f"{prefix.name}.ranked" if value["stage"] == "preference" else prefix.name
    for field, suffix in (("bin_sha256", ".bin"), ("idx_sha256", ".idx")):
        value[field] = sha256_file(prefix.with_name(name + suffix))
    for suffix in value["more_sha256"]:
        value["more_sha256"][suffix] = sha256_file(prefix.with_name(prefix.name + suffix))
    edit_sidecar(path, **{**value, **facts})


def flip(path, place, value=1):
    raw = bytearray(path.read_bytes())
    raw[place] ^= value
    path.write_bytes(raw)


def findings(prefix, tokenizer=None):
    return {f.what: f for f in verify_prefix(str(prefix), tokenizer)}


def wrong(prefix, tokenizer=None):
    found = findings(prefix, tokenizer)
    return {what: f.detail for what, f in found.items() if f.verdict == "WRONG"}


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train_model())
    tokenizer = SentencePieceTokenizer(path.read_bytes())
    return {
        "tokenizer_name": str(path),
        "tokenizer_sha256": tokenizer.identity,
        "vocab_size": tokenizer.vocab_size,
    }


@pytest.fixture
def plain(tmp_path, model):
    prefix = write_prefix(tmp_path / "data", DOCUMENTS, eod_id=2)
    edit(prefix, sources=SOURCES, **model)
    return prefix


@pytest.fixture
def talk(tmp_path, model):
    write_conversations(tmp_path / "talk", CONVERSATIONS)
    edit(tmp_path / "talk", sources=whole(2, 8, supervised_tokens=5, end_tokens=3), **model)
    return tmp_path / "talk"


@pytest.fixture
def ranked(tmp_path, model):
    write_groups(tmp_path / "ranked", GROUPS)
    edit(tmp_path / "ranked", sources=whole(2, 15, supervised_tokens=8), **model)
    return tmp_path / "ranked"


@pytest.fixture(params=[1 << 22, 2])
def blocks(request, monkeypatch):
    """Everything in one block, and as good as every document in its own."""
    monkeypatch.setattr(token_blocks, "BLOCK_TOKENS", request.param)


@pytest.mark.usefixtures("blocks")
def test_a_sound_prefix_of_each_stage_passes(plain, talk, ranked):
    for prefix in (plain, talk, ranked):
        found = findings(prefix)
        assert {f.verdict for f in found.values()} == {"ok"}, prefix
    assert findings(plain)["ends of documents"].detail.startswith("id 2 ends 3 of 3 documents and")
    assert findings(plain)["counts"].detail.startswith("3 rows, 0 malformed, 3 examples: all")
    assert findings(talk)["supervised tokens"].detail == "5 tokens (62.5%) in 2 of 2 sequences"
    assert findings(talk)["supervised ends"].detail.startswith("3 tokens with id 2, the sidecar")
    assert findings(ranked)["ranks"].detail == "2 groups, 1 of them pairs, 1 with a tie"
    assert findings(ranked)["prompts"].detail == "1 to 2 tokens, shared by all candidates"


def test_every_file_has_its_hash(ranked):
    flip(ranked.with_name("ranked.ranked.mask.bin"), 0)
    path = ranked.with_name("ranked.rank.json")
    path.write_text(path.read_text() + " ")
    names = {"sha256 of ranked.ranked.mask.bin", "sha256 of ranked.rank.json"}
    assert names < set(wrong(ranked))
    assert all("but the sidecar states" in wrong(ranked)[name] for name in names)
    path.unlink()
    assert wrong(ranked)["sha256 of ranked.rank.json"].startswith("the file is missing")
    sidecar = ranked.with_name("ranked.meta.json")
    value = json.loads(sidecar.read_text())
    del value["more_sha256"][".ranked.mask.idx"]
    edit_sidecar(sidecar, **value)
    assert wrong(ranked)["sha256 of ranked.ranked.mask.idx"].endswith("the sidecar states None")
    value["more_sha256"]["/../../secret"] = "0"
    edit_sidecar(sidecar, **value)
    assert wrong(ranked)["files"].endswith("data do not have: ['/../../secret']")


@pytest.mark.usefixtures("blocks")
def test_ids_outside_the_vocabulary_are_counted_and_the_first_is_named(plain, tmp_path):
    edit(plain, vocab_size=6, tokenizer_name="gone")
    expected = "2 ids are outside the vocabulary of 6: token 1 of document 0, which is 6"
    assert wrong(plain)["token ids"] == expected
    path = write_prefix(tmp_path / "negative", [[1], [3, 4]], np.int32)
    np.array([1, 3, -4], "<i4").tofile(path.with_suffix(".bin"))
    assert wrong(path)["token ids"].endswith("token 1 of document 1, which is -4")


def test_a_wrong_maximum_in_the_sidecar_shows(plain):
    edit(plain, max_token_id=6)
    expected = "2 to 7, vocabulary 400, but the sidecar states 6 as the largest"
    assert wrong(plain) == {"token ids": expected}


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(
    ("documents", "detail"),
    [
        ([[5, 2], [6], [2]], "ends 2 of 3 documents and occurs 0 times elsewhere; document 1 is"),
        ([[5, 2, 2], [6, 2]], "ends 2 of 2 documents and occurs 1 times elsewhere"),
        ([[5, 2], [], [3, 2]], "document 1 is the first without"),
    ],
)
def test_missing_and_stray_ends_show(tmp_path, documents, detail):
    prefix = write_prefix(tmp_path / "data", documents, eod_id=2)
    assert detail in wrong(prefix)["ends of documents"]


def test_ends_are_only_counted_where_none_are_promised(tmp_path, model):
    prefix = write_prefix(tmp_path / "data", [[5, 2], [6]])
    assert findings(prefix)["ends of documents"].verdict == "unknown"
    edit(prefix, **model)
    ends = findings(prefix)["ends of documents"]
    assert ends.verdict == "unknown" and ends.detail.startswith("id 2 ends 1 of 2 documents")


@pytest.mark.parametrize(
    ("ranges", "detail"),
    [
        ([(0, 1), (2, 3)], "b.txt holds documents (2, 3), not from 1"),
        ([(0, 2), (2, 2)], "2 files cover documents 0 to 2 of 3"),
        ([(0, 2), (2, 1)], "b.txt holds documents (2, 1)"),
        ([(0, 2), (2, 9)], "b.txt holds documents (2, 9)"),
    ],
)
def test_sources_must_cover_the_documents(plain, ranges, detail):
    edit(plain, sources=[{**s, "documents": r} for s, r in zip(SOURCES, ranges, strict=True)])
    assert detail in wrong(plain)["sources"]


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"examples": 3}, "a.txt: examples is 3, but 2 were counted"),
        ({"empty": 1}, "a.txt: examples is 2, but 3 were counted"),
        ({"tokens": 4}, "a.txt: tokens is 4, but 5 were counted"),
        ({"supervised_tokens": 1}, "a.txt: supervised_tokens is 1, but 0 were counted"),
    ],
)
def test_counts_of_sources_must_be_those_of_the_tokens(plain, change, detail):
    edit(plain, sources=[{**SOURCES[0], **change}, SOURCES[1]])
    assert wrong(plain)["counts"] == detail


def test_another_tokenizer_shows_with_both_identities(plain, tmp_path):
    other = tmp_path / "other.model"
    other.write_bytes(train_model(399))
    detail = wrong(plain, str(other))["tokenizer"]
    assert detail.startswith(
        f"{other}: sha256 {SentencePieceTokenizer(other.read_bytes()).identity}, but the"
    )
    assert "vocabulary 399, but the data was made with 400" in detail


def test_a_tokenizer_that_is_gone_leaves_things_unknown(talk, tmp_path):
    (tmp_path / "tokenizer.model").unlink()
    found = findings(talk)
    assert {w for w, f in found.items() if f.verdict == "unknown"} == {
        "tokenizer",
        "supervised ends",
    }
    assert "does not exist; give one with --tokenizer" in found["tokenizer"].detail


@pytest.mark.usefixtures("blocks")
def test_masks_must_be_binary_and_teach_something(talk):
    path = talk.with_name("talk.mask.bin")
    flip(path, 4, 2)
    assert wrong(talk)["mask"].endswith("1 are neither 0 nor 1: token 1 of document 1, which is 3")
    np.array([1, 0, 0, 0, 1, 1, 0, 1], "u1").tofile(path)
    edit(talk)
    # The first token of a sequence is never predicted: to supervise it teaches nothing.
    expected = "4 tokens (50.0%) in 1 of 2 sequences; nothing is learned from document 0"
    assert wrong(talk)["supervised tokens"] == expected


def test_supervised_ends_must_be_as_many_as_stated(talk):
    np.array([0, 1, 0, 0, 1, 1, 0, 1], "u1").tofile(talk.with_name("talk.mask.bin"))
    edit(talk, sources=whole(2, 8, supervised_tokens=4, end_tokens=3))
    assert wrong(talk) == {
        "supervised ends": "2 tokens with id 2, the sidecar states 3",
        "counts": "a.json: end_tokens is 3, but 2 were counted",
    }


def test_a_mask_of_other_lengths_is_found_and_the_tokens_are_checked_all_the_same(talk):
    other = write_prefix(talk.with_name("other"), [[1], [2, 3, 4, 5, 6, 7, 8]], np.uint8)
    for suffix in (".bin", ".idx"):
        other.with_suffix(suffix).replace(talk.with_name(f"talk.mask{suffix}"))
    edit(talk, max_token_id=3)
    found = wrong(talk)
    assert "its sequences are not those of talk.idx" in found["index"]
    assert "but the sidecar states 3 as the largest" in found["token ids"]


def rank_file(prefix, **fields):
    path = prefix.with_name("ranked.rank.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    edit(prefix)


@pytest.mark.parametrize(
    ("ranks", "detail"),
    [
        ([[0, 1], [2, 1, 2]], "1 groups have no candidate of rank 0: document 1"),
        ([[0, 0], [1, 0, 1]], "1 groups rank all candidates equally, so nothing is learned: doc"),
    ],
)
def test_ranks_must_say_which_is_better(ranked, ranks, detail):
    rank_file(ranked, ranks=ranks)
    assert wrong(ranked)["ranks"].startswith(detail)


def test_a_rank_file_of_other_groups_is_found(ranked):
    rank_file(ranked, ranks=[[0, 1], [0, 1]])
    assert "ranks do not fit the candidates in ranked.ranked.idx" in wrong(ranked)["index"]


@pytest.mark.usefixtures("blocks")
def test_candidates_must_share_their_prompt_and_not_learn_it(ranked):
    rank_file(ranked, prompt_lengths=[2, 2])
    assert "a prompt is as long as one of its candidates" in wrong(ranked)["index"]
    rank_file(ranked, prompt_lengths=[2, 1])
    path = ranked.with_name("ranked.ranked.bin")
    ids = np.fromfile(path, "<u2")
    ids[-3] = 5  # the prompt of the last candidate
    ids.tofile(path)
    edit(ranked)
    assert wrong(ranked) == {
        "prompts": "in 1 groups the candidates start with different prompts: document 1",
    }
    flip(ranked.with_name("ranked.ranked.mask.bin"), 1)
    edit(ranked, sources=whole(2, 15, supervised_tokens=9))
    assert wrong(ranked)["prompt tokens"] == "supervised in 1 groups: document 0"


@pytest.mark.usefixtures("blocks")
def test_equal_candidates_must_not_be_ranked_apart(tmp_path):
    groups = [([1], [([3], 0), ([3], 1)]), ([1], [([3], 0), ([3], 0), ([4], 1)])]
    write_groups(tmp_path / "ranked", groups)
    expected = "equal candidates with different ranks in 1 groups: document 0"
    assert wrong(tmp_path / "ranked")["candidates"] == expected


def test_a_stock_file_is_checked_as_far_as_possible(plain, model):
    plain.with_suffix(".meta.json").unlink()
    found = findings(plain)
    assert {f.verdict for what, f in found.items() if what in ("index", "token ids")} == {"ok"}
    assert found["sidecar"].verdict == found["tokenizer"].verdict == "unknown"
    assert found["token ids"].detail == "2 to 7, unknown vocabulary"
    assert findings(plain, model["tokenizer_name"])["ends of documents"].verdict == "unknown"


def test_what_the_sidecar_leaves_out_is_unknown(plain, tmp_path):
    edit(plain, sources=[])
    assert findings(plain)["sources"].verdict == "unknown"
    (tmp_path / "tokenizer.model").write_bytes(b"nothing")
    assert "tokenizer.model" in wrong(plain)["tokenizer"]


def test_floating_point_numbers_are_no_ids(tmp_path):
    write_prefix(tmp_path / "data", [[1, 2]], np.int32)
    (tmp_path / "data.meta.json").unlink()
    flip(tmp_path / "data.idx", 17, 4 ^ 7)  # the same bytes as float32
    assert wrong(tmp_path / "data") == {"token ids": "float32 elements are not token ids"}


def test_conversations_that_lost_their_sidecar_are_no_stock_file(talk):
    talk.with_name("talk.meta.json").unlink()
    assert wrong(talk)["sidecar"].startswith("talk.meta.json is missing, but talk.mask")


def test_all_faults_are_told_at_once(plain):
    flip(plain.with_suffix(".bin"), 0)
    path = plain.with_suffix(".idx")
    path.write_bytes(path.read_bytes()[:-1])
    found = wrong(plain)
    assert list(found) == ["sha256 of data.bin", "sha256 of data.idx", "index"]
    assert "data.idx, byte 18: expected" in found["index"]
    plain.with_suffix(".meta.json").write_text("{")
    assert "is not valid JSON" in wrong(plain)["sidecar"]


def test_a_path_without_files_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"is not a prefix: there is neither .*nowhere\.idx nor"):
        verify_prefix(str(tmp_path / "nowhere"))
