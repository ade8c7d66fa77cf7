"""The rehearsal of benchmarks/device_check.py runs every item without a GPU."""

import ast
import inspect
import json
import sys
import time
from pathlib import Path

import device_check
import pytest
import torch
from device_items import bundle, gpu, record, report

from megatron_chimed.errors import ConfigError

ITEM = device_check.Item(name="one", module="one", limit=5, about="for the test")


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """The result of a rehearsal of all items, and its exit code."""
    output = tmp_path_factory.mktemp("check") / "new" / "device_check.json"
    code = device_check.main(["--rehearse", "--in-process", "--output", str(output)])
    return code, json.loads(output.read_text("utf-8"))


def test_every_item_runs_to_its_end(rehearsed):
    code, result = rehearsed
    broken = {name: x["error"] for name, x in result["items"].items() if x["status"] != "done"}
    assert not broken
    assert code == 0
    assert list(result["items"]) == [item.name for item in device_check.ITEMS]


def test_a_rehearsal_misses_no_goal_that_needs_no_gpu(rehearsed):
    rows = [row for item in rehearsed[1]["items"].values() for row in item["rows"]]
    assert not [row for row in rows if row["met"] is False]
    assert sum(row["met"] is True for row in rows) > 50
    assert all(row["met"] is None for row in rows if row["unit"] == "of the copy bandwidth")


def test_every_goal_of_speed_is_stated(rehearsed):
    """The goals are for figures that exist: a renamed op would lose its goal in silence."""
    stated = [
        (row["what"].split()[0], row["goal"])
        for name in ("kernels", "compiled")
        for row in rehearsed[1]["items"][name]["rows"]
        if row["goal"]
    ]
    for op, goals in {
        "rms_norm": {">= 0.8", ">= 0.65", ">= 2.5"},
        "add_rms_norm": {">= 0.8", ">= 0.65"},
        "swiglu": {">= 0.85", ">= 2"},
        "rope": {">= 0.75", ">= 4"},
        "cross_entropy": {">= 0.6", ">= 4", "<= 0.05"},
        "adamw": {">= 0.8", ">= 1.1"},
    }.items():
        assert {goal for name, goal in stated if name == op} == goals, op
    steps = rehearsed[1]["items"]["steps"]["rows"]
    assert [row["goal"] for row in steps if "model FLOPs" in row["what"]] == [">= 0.6", "", ""]


def test_a_result_becomes_rows_of_a_table(rehearsed, tmp_path, capsys):
    stored = tmp_path / "result.json"
    stored.write_text(json.dumps(rehearsed[1]))
    assert device_check.main(["--format", str(stored)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("REHEARSAL: no GPU, the figures mean nothing. Commit ")
    rows = [
        row
        for name, x in rehearsed[1]["items"].items()
        if name != "environment"
        for row in x["rows"]
    ]
    assert len(lines) == 4 + len(rows)
    assert all(line.count(" | ") == 4 for line in lines[4:])
    assert "| library | bundled kernels | loaded | loaded | reached |" in lines


def test_a_failed_item_and_a_missed_goal_are_in_the_table():
    row = {"what": "x", "value": 0.5, "unit": "of the copy bandwidth", "goal": ">= 0.8"}
    bad = {"status": "failed", "seconds": 1.0, "error": "a\nKernelError: b | c\n"}
    result = {
        "rehearsal": False,
        "commit": "abc",
        "started": "now",
        "command": "device_check.py",
        "items": {"kernels": {**bad, "rows": [{**row, "met": False, "details": {}}]}},
    }
    table = report.markdown(result).splitlines()
    assert table[-2] == "| kernels | the item itself | failed: KernelError: b \\| c | | |"
    assert table[-1] == "| kernels | x | 50.0% of the copy bandwidth | >= 0.8 | **missed** |"
    assert "failed: kernels: KernelError: b | c" in report.summary(result)
    assert "missed: kernels: x: 50.0% of the copy bandwidth, >= 0.8" in report.summary(result)


def fake(monkeypatch, program: str) -> None:
    """Items become this Python program, which knows `rows`, the path of its rows."""
    monkeypatch.setattr(
        device_check,
        "item_command",
        lambda item, *, rows, **_: [sys.executable, "-c", f"rows = {str(rows)!r}\n{program}"],
    )


ONE_ROW = "open(rows, 'w').write('[{}]')\n"


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.timing
def test_a_hanging_item_is_killed_with_its_children_and_keeps_its_rows(monkeypatch, tmp_path):
    alive = tmp_path / "alive"
    child = "import os, time\npid = os.fork()\n"
    hang = f"open({str(alive)!r}, 'w').write(str(pid)) if pid else None\ntime.sleep(600)"
    fake(monkeypatch, child + ONE_ROW + hang)
    found = device_check.run_in_process(ITEM, seconds=5, rehearse=True)
    assert found["status"] == "timed out"
    assert found["rows"] == [{}]
    assert found["error"].endswith("killed after 5 s")
    deadline = time.monotonic() + 60
    while is_running(int(alive.read_text())):
        assert time.monotonic() < deadline, "the item's child outlives it"
        time.sleep(0.01)


def test_a_crashing_item_keeps_its_rows_and_says_by_what(monkeypatch):
    fake(monkeypatch, ONE_ROW + "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    found = device_check.run_in_process(ITEM, seconds=30, rehearse=True)
    assert (found["status"], found["rows"]) == ("failed", [{}])
    assert found["error"].endswith("ended by signal 11")


def test_the_next_item_runs_after_a_failure_and_the_exit_code_says_so(monkeypatch, tmp_path):
    other = device_check.Item(name="two", module="two", limit=30, about="for the test")
    monkeypatch.setattr(device_check, "ITEMS", (ITEM, other))
    fake(monkeypatch, "raise SystemExit('broken')")
    output = tmp_path / "out.json"
    assert device_check.main(["--rehearse", "--output", str(output)]) == 1
    items = json.loads(output.read_text("utf-8"))["items"]
    assert [item["status"] for item in items.values()] == ["failed", "failed"]
    assert items["two"]["error"].strip() == "broken"


def test_at_the_end_of_the_time_nothing_more_starts(monkeypatch, tmp_path):
    fake(monkeypatch, ONE_ROW)
    monkeypatch.setattr(device_check, "LEAST_SECONDS", 1e9)
    output = tmp_path / "out.json"
    command = ["--rehearse", "--items", "rates", "--limit-seconds", "1", "--output", str(output)]
    assert device_check.main(command) == 1
    found = json.loads(output.read_text("utf-8"))["items"]["rates"]
    assert (found["status"], found["rows"], found["seconds"]) == ("no time", [], None)


def test_an_item_in_a_process_of_its_own(tmp_path):
    """As on a GPU: a new process, whose rows come back."""
    output = tmp_path / "out.json"
    assert device_check.main(["--rehearse", "--items", "rates", "--output", str(output)]) == 0
    rows = json.loads(output.read_text("utf-8"))["items"]["rates"]["rows"]
    assert [row["unit"] for row in rows] == ["TB/s", "TFLOP/s"]


def test_without_a_gpu_it_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="sees no GPU here.*--rehearse"):
        device_check.main([])


def test_an_unknown_item_is_refused():
    with pytest.raises(ConfigError, match="no item is called bogus. Choose from environment,"):
        device_check.main(["--rehearse", "--items", "rates,bogus"])


def test_the_list_fits_the_time(capsys):
    assert device_check.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        item.name for item in device_check.ITEMS
    ]
    # Whatever the first items take, those without compilers and tools of others get their turn.
    assert sum(item.limit for item in device_check.ITEMS[:6]) <= 480


def test_the_stand_in_has_the_calls_of_the_gpu():
    for name, function in inspect.getmembers(gpu.Gpu, inspect.isfunction):
        theirs = inspect.signature(getattr(gpu.StandIn, name))
        assert inspect.signature(function) == theirs, name


def test_torch_has_every_name_that_only_a_gpu_would_use():
    """The lines that the rehearsal replaces are spelled right at least."""
    tree = ast.parse(Path(gpu.__file__).read_text("utf-8"))
    names = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names = {name for name in names if name.startswith("torch.") and "(" not in name}
    assert "torch.cuda.CUDAGraph" in names
    for name in names:
        found = torch
        for part in name.split(".")[1:]:
            found = getattr(found, part)
    assert {"stream", "cuda_graph"} <= inspect.signature(torch.cuda.graph).parameters.keys()


def test_nothing_but_the_gpu_module_calls_torch_cuda():
    """Else the rehearsal would not reach a line, or reach it without a device."""
    folder = Path(gpu.__file__).parent
    allowed = {"torch.cuda.is_available", "torch.cuda.nccl.version", "torch.cuda.is_available()"}
    for path in folder.glob("*.py"):
        if path.name != "gpu.py":
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.cuda."):
                    assert ast.unparse(node) in {*allowed, "torch.cuda.nccl"}, path.name


def test_rows_that_json_cannot_hold(tmp_path):
    rows = record.Record(tmp_path / "rows.json")
    rows.add("a", float("nan"), goal=record.Goal(at_most=1.0), other=[float("inf"), {1: None}])
    rows.unavailable("b", "not installed")
    first, second = json.loads((tmp_path / "rows.json").read_text("utf-8"))
    assert (first["value"], first["met"]) == ("nan", False)
    assert first["details"] == {"other": ["inf", {"1": None}]}
    assert report.measured(second) == "not available: not installed"


@pytest.fixture
def wheels(tmp_path):
    """A folder with a wheel of everything that would be downloaded."""
    for name in (*map(bundle._pin, bundle.PINNED), *bundle.UNPINNED):
        package, _, version = name.partition("==")
        wheel = f"{package.replace('-', '_')}-{version or '1.0'}-py3-none-any.whl"
        (tmp_path / wheel).write_bytes(bytes(1000))
    return tmp_path


def test_a_bundle_says_its_sizes_and_how_to_install_it(wheels, capsys):
    bundle.make_bundle(wheels)
    printed = capsys.readouterr().out
    assert "together, of 64" in printed
    assert f"there, in the root of the repository: sh {wheels / 'install.sh'}" in printed
    assert (wheels / "_kernels.so").is_file()
    script = (wheels / "install.sh").read_text("utf-8")
    assert "--no-index --no-deps" in script


def test_a_bundle_that_cannot_travel_is_refused(wheels, monkeypatch):
    monkeypatch.setattr(bundle, "LIMIT_MIB", 1)
    with pytest.raises(ConfigError, match="but 1 MiB can be brought along. Remove what is not"):
        bundle.make_bundle(wheels)


def test_a_bundle_without_an_index_says_which_wheels_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "_download", lambda folder, names: "no index")
    with pytest.raises(ConfigError, match="no wheel of megatron-core==.*for Python 3.12: no index"):
        bundle.make_bundle(tmp_path)
