"""The safetensors writer and strict reader, against the safetensors library."""

import hashlib
import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from megatron_chimed.checkpoint.safetensors_io import (
    DTYPES,
    SafetensorsFile,
    TensorSpec,
    write_safetensors,
)
from megatron_chimed.errors import CheckpointError

DTYPE_LIST = list(DTYPES.values())


def sample(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Bytes 0, 1, 2, ... read as `dtype`: no NaN matters, equality is over bytes."""
    count = math.prod(shape) * dtype.itemsize
    raw = (torch.arange(count) % (2 if dtype is torch.bool else 120)).to(torch.uint8)
    return raw.view(dtype).reshape(shape)


def write(path, tensors, **kwargs):
    specs = {name: TensorSpec(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    return write_safetensors(path, specs, tensors.__getitem__, **kwargs)


def test_every_dtype_is_read_back_by_the_library_and_by_us(tmp_path):
    tensors = {str(dtype): sample(dtype, (3, 5)) for dtype in DTYPE_LIST}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "0": torch.ones(1)}
    record = write(tmp_path / "x.safetensors", tensors, metadata={"format": "pt"})
    ours = SafetensorsFile(tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="pt") as theirs:
        assert theirs.metadata() == {"format": "pt"}
        assert set(theirs.keys()) == set(tensors) == set(ours.specs)
        for name, tensor in tensors.items():
            for found in (theirs.get_tensor(name), ours.read(name)):
                assert found.dtype is tensor.dtype
                assert found.shape == tensor.shape
                assert (
                    found.numpy(force=True).tobytes() == tensor.numpy().tobytes()
                    if (tensor.dtype is not torch.bfloat16)
                    else torch.equal(found, tensor)
                )
    raw = (tmp_path / "x.safetensors").read_bytes()
    assert record.size == len(raw)
    assert record.sha256 == hashlib.sha256(raw).hexdigest()


def test_reads_a_file_of_the_library(tmp_path):
    tensors = {"a": torch.randn(7, 3), "b": torch.arange(5), "c": torch.randn(2).bfloat16()}
    save_file(tensors, tmp_path / "x.safetensors")
    ours = SafetensorsFile(tmp_path / "x.safetensors")
    assert all(torch.equal(ours.read(name), tensor) for name, tensor in tensors.items())


def test_any_strides_are_written_in_row_order(tmp_path):
    wide = torch.arange(24.0).reshape(4, 6)
    write(tmp_path / "x.safetensors", {"t": wide.t(), "part": wide[1:3, 2:5]})
    ours = SafetensorsFile(tmp_path / "x.safetensors")
    assert torch.equal(ours.read("t"), wide.t())
    assert torch.equal(ours.read("part"), wide[1:3, 2:5])


def test_a_copy_does_not_alias_the_file(tmp_path):
    path = tmp_path / "x.safetensors"
    write(path, {"a": torch.zeros(4)})
    copy, view = SafetensorsFile(path).read("a"), SafetensorsFile(path).view("a")
    view.fill_(9.0)
    assert torch.equal(SafetensorsFile(path).read("a"), torch.zeros(4)), "the mapping is private"
    with open(path, "r+b") as stream:
        stream.seek(-16, 2)
        stream.write(torch.ones(4).numpy().tobytes())
    assert torch.equal(copy, torch.zeros(4))


def test_never_writes_over_a_file(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        write(path, {"a": torch.zeros(4)})
    assert path.read_bytes() == b"old"


def test_the_header_must_announce_what_is_given(tmp_path):
    specs = {"a": TensorSpec(torch.float32, (4,))}
    with pytest.raises(AssertionError, match="a: the header announces"):
        write_safetensors(tmp_path / "x", specs, lambda name: torch.zeros(5))


def raw_file(path, table, data: bytes, *, length=None):
    header = table if isinstance(table, bytes) else json.dumps(table).encode()
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little"))
    with open(path, "ab") as stream:
        stream.write(header + data)


def entry(start, stop, shape, dtype="U8"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("table", "data", "reason"),
    [
        ({"a": entry(0, 4, [4]), "b": entry(2, 6, [4])}, 6, "overlap"),
        ({"a": entry(0, 4, [4]), "b": entry(5, 6, [1])}, 6, "gap"),
        ({"a": entry(0, 4, [4])}, 6, "end at byte 4 of 6"),
        ({"a": entry(0, 4, [4])}, 3, "end at byte 4 of 3"),
        ({"a": entry(0, 4, [5])}, 4, "wrong size"),
        ({"a": entry(-4, 0, [4])}, 4, "whole numbers"),
        ({"a": entry(0, 4, [-4])}, 4, "whole numbers"),
        ({"a": entry(0, 4, [4.0])}, 4, "whole numbers"),
        ({"a": entry(0, 4, [True, 4])}, 4, "whole numbers"),
        ({"a": entry(0, 4, [4], "F8_E4M3")}, 4, "'F8_E4M3' is not supported"),
        ({"a": {"dtype": "U8"}}, 4, "malformed header"),
        ({"a": 3}, 4, "malformed header"),
        ([1], 4, "malformed header"),
        (b"{not json", 0, "malformed header"),
        (b"[" * 100_000, 0, "malformed header"),
        (b'{"a":1,"a":2}', 0, "occurs twice"),
    ],
)
def test_damaged_headers_are_refused_by_name_and_reason(tmp_path, table, data, reason):
    raw_file(tmp_path / "bad.safetensors", table, bytes(data))
    with pytest.raises(CheckpointError, match=reason) as caught:
        SafetensorsFile(tmp_path / "bad.safetensors")
    assert "bad.safetensors" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x01", (1 << 40).to_bytes(8, "little") + b"{}"])
def test_short_files_and_huge_headers_are_refused(tmp_path, content):
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a valid safetensors file: header of"):
        SafetensorsFile(tmp_path / "bad")
