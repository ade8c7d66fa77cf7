"""Room is asked for before the work, and a disk that fills up is named with what it lacked."""

import errno
import shutil

import pytest

from megatron_chimed import disk_space
from megatron_chimed.errors import OutputError


@pytest.fixture
def disk(monkeypatch):
    """Makes every file system have so much free."""

    def give(free):
        usage = shutil._ntuple_diskusage(10**15, 0, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    return give


def test_a_path_that_is_not_there_yet_is_measured_where_it_would_be(tmp_path):
    free = disk_space.free_bytes(tmp_path)
    assert abs(disk_space.free_bytes(tmp_path / "a" / "b") - free) < 10**9 and free > 0


def test_too_little_room_is_refused_with_both_numbers_and_the_way_out(disk, tmp_path):
    disk(11_900_000_000)
    disk_space.require_space(tmp_path, 11_900_000_000, "weights")
    with pytest.raises(OutputError) as caught:
        disk_space.require_space(tmp_path / "out", 26_300_000_000, "weights", "or save less")
    assert str(caught.value) == (
        f"{tmp_path / 'out'} has no room for weights: 26.3 GB needed, 11.9 GB free. Free some "
        "space there, or save less."
    )


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_is_named_alike(disk, tmp_path, code):
    disk(0)
    with (
        pytest.raises(
            OutputError, match=r"no room for weights: 2.5 MB needed, 0 kB free.*another output"
        ),
        disk_space.naming_space(tmp_path, 2_500_000, "weights"),
    ):
        raise OSError(code, "full", "part")


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(PermissionError), disk_space.naming_space(tmp_path, 1, "weights"):
        raise PermissionError(errno.EACCES, "no")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 kB"), (1234, "1.23 kB"), (1_000_000, "1 MB"), (182e9, "182 GB"), (2.5e12, "2,500 GB")],
)
def test_bytes_are_shown_in_three_digits(count, text):
    assert disk_space.show_bytes(int(count)) == text
