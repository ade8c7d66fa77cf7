"""Opening follows the stage in the sidecar; files that do not belong together are refused."""

import pytest

from megatron_chimed.data.datasets.prefix import check_stage, content_of, open_prefix
from megatron_chimed.errors import ConfigError, DataError
from tests.unit.data.packed_prefixes import answered, write_conversations, write_groups
from tests.unit.data.prefixes import edit_sidecar, write_prefix

GROUPS = [([1], [([2], 0), ([3], 1)])]


def test_each_stage_opens_with_its_files(tmp_path):
    plain = open_prefix(str(write_prefix(tmp_path / "plain", [[1, 2]])))
    assert (plain.stage, plain.targets, plain.rankings) == ("pretrain", None, None)
    sft = open_prefix(write_conversations(tmp_path / "sft", answered([4, 6])))
    assert (sft.stage, sft.targets.tolist()) == ("sft", [0, 0, 1, 1, 0, 0, 0, 1, 1, 1])
    ranked = open_prefix(write_groups(tmp_path / "ranked", GROUPS))
    assert (ranked.stage, ranked.targets.tolist()) == ("preference", [0, 1, 0, 1])
    assert ranked.rankings.ranks.tolist() == [0, 1]
    assert ranked.indexed.sidecar.stage == "preference"


def test_files_without_a_sidecar_are_for_pretraining(tmp_path):
    write_prefix(tmp_path / "stock", [[1, 2]])
    (tmp_path / "stock.meta.json").unlink()
    assert open_prefix(str(tmp_path / "stock")).stage == "pretrain"


def test_a_stage_that_is_not_known_is_refused(tmp_path):
    name = str(write_prefix(tmp_path / "odd", [[1, 2]], stage="other"))
    with pytest.raises(DataError, match="stage is 'other', which this program does not know"):
        open_prefix(name)


def test_data_of_another_stage_are_refused_with_the_way_out(tmp_path):
    prefix = open_prefix(write_conversations(tmp_path / "sft", answered([4])))
    check_stage(prefix, "sft")
    with pytest.raises(ConfigError) as caught:
        check_stage(prefix, "pretrain")
    message = str(caught.value)
    assert "preprocessed with --stage sft, but this run trains on pretrain data" in message


@pytest.mark.parametrize("suffix", [".mask.bin", ".mask.idx"])
def test_a_missing_mask_is_named(tmp_path, suffix):
    name = write_conversations(tmp_path / "data", answered([4]))
    (tmp_path / f"data{suffix}").unlink()
    with pytest.raises(ConfigError, match=rf"data\{suffix} does not exist"):
        open_prefix(name)


def test_the_mask_of_another_run_is_refused(tmp_path):
    write_conversations(tmp_path / "data", answered([4, 6]))
    write_conversations(tmp_path / "other", answered([6, 4]))
    for suffix in (".mask.bin", ".mask.idx"):
        (tmp_path / f"other{suffix}").replace(tmp_path / f"data{suffix}")
    with pytest.raises(DataError, match="its sequences are not those of data.idx"):
        open_prefix(str(tmp_path / "data"))


def test_a_mask_of_other_elements_is_refused(tmp_path):
    write_conversations(tmp_path / "data", answered([4]))
    write_prefix(tmp_path / "wide", [[0, 0, 1, 1]])
    for suffix in (".bin", ".idx"):
        (tmp_path / f"wide{suffix}").replace(tmp_path / f"data.mask{suffix}")
    with pytest.raises(DataError, match="uint16 elements, but a mask has uint8"):
        open_prefix(str(tmp_path / "data"))


def test_a_ranked_prefix_is_checked_against_its_sidecar(tmp_path):
    name = write_groups(tmp_path / "data", GROUPS)
    path = tmp_path / "data.meta.json"
    edit_sidecar(path, tokens=5)
    with pytest.raises(DataError, match="tokens is 5, but data.ranked.idx has 4"):
        open_prefix(name)


def test_content_tells_masks_apart(tmp_path):
    """The same ids with other targets are other data: a run may not go on with them."""
    conversations = answered([4, 6])
    other = [(ids, [1] * len(ids)) for ids, _ in conversations]
    one = open_prefix(write_conversations(tmp_path / "one", conversations))
    same = open_prefix(write_conversations(tmp_path / "same", conversations))
    two = open_prefix(write_conversations(tmp_path / "two", other))
    assert content_of(one.indexed) == content_of(same.indexed) != content_of(two.indexed)
