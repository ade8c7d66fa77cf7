"""A user's error is one message and its exit code; a bug keeps its traceback."""

import dataclasses
import errno
import re
import resource
from pathlib import Path
from typing import Literal

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from megatron_chimed import command_line, errors, field_types

EXIT_CODES = {
    errors.ConfigError: 78,
    errors.DataError: 65,
    errors.OutputError: 73,
    errors.CheckpointError: 74,
    errors.ParallelError: 75,
    errors.InterruptError: 130,
    errors.UnsafeInputError: 77,
    errors.NumericError: 17,
    errors.KernelError: 70,
    errors.GpuMemoryError: 71,
}


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(("error_class", "exit_code"), EXIT_CODES.items())
def test_our_errors_become_one_line_and_their_exit_code(capsys, error_class, exit_code):
    assert errors.run_command(raising(error_class("what; why; how"))) == exit_code
    captured = capsys.readouterr()
    assert captured.err == f"{error_class.__name__}: what; why; how\n"
    assert captured.out == ""


def test_every_class_is_in_the_table_and_codes_are_distinct():
    subclasses = errors.ChimedError.__subclasses__()
    # The demo has one of its own, which other tests may have imported.
    ours = {cls for cls in subclasses if cls.__module__.startswith("megatron_chimed.")}
    assert ours == set(EXIT_CODES)
    assert len({cls.exit_code for cls in EXIT_CODES} | {0, errors.ChimedError.exit_code}) == 12


def test_the_documented_codes_are_these():
    text = (Path(errors.__file__).parents[1] / "docs" / "running.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", text, re.MULTILINE)
    assert {name: int(code) for code, name in rows} == {
        cls.__name__: code for cls, code in EXIT_CODES.items()
    }


def test_the_command_keeps_its_own_exit_code():
    assert errors.run_command(lambda: 0) == 0
    assert errors.run_command(lambda: 3) == 3


def test_a_missing_file_is_named(capsys, tmp_path):
    path = tmp_path / "absent.jsonl"
    assert errors.run_command(lambda: len(path.read_text())) == 78
    assert (
        capsys.readouterr().err == f"ConfigError: {str(path)!r} does not exist. Check the path.\n"
    )


def test_a_full_disk_is_an_output_error(capsys):
    error = OSError(errno.ENOSPC, "No space left on device", "P.bin")
    assert errors.run_command(raising(error)) == 73
    said = capsys.readouterr().err
    assert (
        "No space left on device: 'P.bin'" in said and "Free some space or name an output" in said
    )


def test_a_misspelt_flag_is_named_before_what_is_missing():
    parser = command_line.CommandParser(prog="x.py")
    parser.add_argument("--tokenizer", required=True)
    for flag in ("--tokeniser", "--token"):
        with pytest.raises(errors.ConfigError, match=f"^{flag} is unknown .did you mean --tok"):
            parser.parse_args([flag, "a"])
    with pytest.raises(errors.ConfigError, match="--tokenizer"):
        parser.parse_args([])


def test_an_interrupt_exits_like_a_shell(capsys):
    assert errors.run_command(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_is_not_dressed_up():
    with pytest.raises(ZeroDivisionError):
        errors.run_command(lambda: 1 // 0)


def ranks(monkeypatch, tmp_path, count=2):
    """Yields once for each rank of a torchrun: its error file, set as torchrun does."""
    for rank in range(count):
        path = tmp_path / "attempt_0" / str(rank) / "error.json"
        path.parent.mkdir(parents=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
        monkeypatch.setenv("RANK", str(rank))
        yield path


def torchruns_summary(paths, code):
    """What torch prints of ranks that ended so, by its own reader."""
    failures = {
        rank: ProcessFailure(local_rank=rank, pid=9, exitcode=code, error_file=str(path))
        for rank, path in enumerate(paths)
    }
    return str(ChildFailedError("tools/train.py", failures))


def test_under_torchrun_a_message_is_said_once_and_stands_in_its_summary(
    capsys, monkeypatch, tmp_path
):
    paths = []
    for path in ranks(monkeypatch, tmp_path, 3):
        paths.append(path)
        assert errors.run_command(raising(errors.ConfigError("what; why; \u836f"))) == 78
    assert capsys.readouterr().err == "[rank 0] ConfigError: what; why; \u836f\n"
    summary = torchruns_summary(paths, 78)
    assert summary.count("traceback : ConfigError: what; why; \u836f\n") == 3
    assert "exitcode  : 78" in summary and "To enable traceback" not in summary


def test_another_message_of_another_rank_is_said_too(capsys, monkeypatch, tmp_path):
    for rank, _ in enumerate(ranks(monkeypatch, tmp_path)):
        errors.run_command(raising(errors.DataError(f"row {rank}")))
    assert capsys.readouterr().err == "[rank 0] DataError: row 0\n[rank 1] DataError: row 1\n"


def test_another_attempt_says_it_again(capsys, monkeypatch, tmp_path):
    for attempt in range(2):
        for _ in ranks(monkeypatch, tmp_path / str(attempt)):
            errors.run_command(raising(KeyboardInterrupt()))
    assert capsys.readouterr().err == "interrupted\n" * 2


def test_a_bug_has_its_traceback_once(monkeypatch, tmp_path):
    """Of the other rank nothing is left to print, and its code says that it failed."""
    starts = ranks(monkeypatch, tmp_path)
    paths = [next(starts)]

    def end():
        return errors.run_command(raising(ZeroDivisionError("by zero")))

    with pytest.raises(ZeroDivisionError):
        end()
    paths.append(next(starts))
    assert end() == 1
    summary = torchruns_summary(paths, 1)
    assert "traceback : ZeroDivisionError: by zero" in summary
    assert "Traceback" not in summary, "the rank has printed it"


def test_an_error_file_that_cannot_be_written_hides_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "absent" / "0" / "error.json"))
    assert errors.run_command(raising(errors.OutputError("full"))) == 73
    assert capsys.readouterr().err.endswith("OutputError: full\n")


def test_settings_are_called_what_the_command_calls_them():
    names = {"optim.lr": "--rate", "parallel.timeout_seconds": None, "data.split": "settings.split"}
    for before, after in (
        ("lower --optim.lr to 1.5, or optim.lr 2.", "lower --rate to 1.5, or --rate 2."),
        ("why: it died; if it was slow, raise --parallel.timeout_seconds.", "why: it died."),
        ("Once. Set --parallel.timeout_seconds to 2.5 or so. Again.", "Once. Again."),
        ("--data.split and data.split and x.data.split", None),
        ("read data.splitting and data.split.jsonl", "read data.splitting and data.split.jsonl"),
    ):
        wanted = after or "--settings.split and settings.split and x.data.split"
        with pytest.raises(errors.DataError) as caught, errors.reworded(names):
            raise errors.DataError(before)
        assert str(caught.value) == wanted


def test_hashes_are_shown_as_prefixes(capsys):
    digest = "0123456789ab" + "c" * 52
    errors.run_command(
        raising(errors.DataError(f"was ['sha256 {digest}, x {digest}'], no {'a' * 65}"))
    )
    told = "was ['sha256 0123456789ab, x 0123456789ab'], no " + "a" * 65
    assert capsys.readouterr().err == f"DataError: {told}\n"


def test_too_many_open_files_names_the_limit_and_what_helps(capsys):
    error = OSError(errno.EMFILE, "Too many open files", "data/part_509.bin")
    assert errors.run_command(raising(error)) == 78
    told = capsys.readouterr().err
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert "data/part_509.bin cannot be opened beyond" in told and f"{limit}, the limit" in told
    assert "`ulimit -n 65536`" in told and "tools/merge_datasets.py" in told and "disk" not in told


def test_a_command_may_open_as_many_files_as_the_system_allows():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        seen = []
        errors.run_command(lambda: seen.append(resource.getrlimit(resource.RLIMIT_NOFILE)) or 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert seen[0] == (min(hard, 1 << 20), hard)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
def test_too_little_memory_is_one_message(capsys, error):
    assert errors.run_command(raising(error)) == 78
    told = capsys.readouterr().err
    assert (
        told.startswith("ConfigError: this machine has too little memory") and "--dry-run" in told
    )


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("NCCL error ... Last error:\nCuda failure 2 'out of memory'"),
    ],
)
def test_too_little_gpu_memory_has_a_code_of_its_own(capsys, error):
    assert errors.run_command(raising(error)) == 71
    told = capsys.readouterr().err
    assert told.startswith("GpuMemoryError: a GPU has too little memory for it. Lower the batch")


def test_values_of_another_type_are_named():
    @dataclasses.dataclass(frozen=True)
    class Settings:
        count: int = 1
        share: float | None = None
        kind: Literal["a", "b"] = "a"
        names: tuple[str, ...] = ()

    field_types.check_types(Settings(2, 1, "b", ("c",)), "x")
    for fields, message in (
        ({"count": "64"}, "--x.count is '64': it must be a whole number"),
        ({"count": True}, "--x.count is true: it must"),
        ({"count": 2.0}, "--x.count is 2.0: it must"),
        ({"count": 10**30}, "no setting takes a number as large"),
        ({"share": "1"}, "--x.share is '1': it must be a number or null"),
        ({"kind": "c"}, "--x.kind is 'c': it must be one of a, b"),
        ({"names": "c"}, "--x.names is 'c': it must be a list of strings"),
        ({"names": ("c", 1)}, r"--x.names\[1\] is 1: it must be a string"),
    ):
        with pytest.raises(errors.ConfigError, match=message):
            field_types.check_types(Settings(**fields), "x")


def test_a_file_that_is_there_is_replaced_only_when_asked(tmp_path):
    path = tmp_path / "out.jsonl"
    command_line.check_output("--output", path)
    path.write_text("paid for")
    said = f"--output: {path} exists already.*--overwrite"
    with pytest.raises(errors.OutputError, match=said):
        command_line.check_output("--output", path)
    command_line.check_output("--output", path, overwrite=True)
    with pytest.raises(errors.ConfigError, match="which is an input and would be replaced"):
        command_line.check_output("--output", path, path, overwrite=True)
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(errors.OutputError, match="exists"):
        command_line.check_output("--output", dangling)


def test_a_folder_is_replaced_only_if_the_command_made_it(tmp_path):
    def check(path, **options):
        command_line.check_output_folder("--output", path, is_ours=ours.__contains__, **options)

    folder, ours = tmp_path / "hf", []
    check(folder)
    folder.mkdir()
    check(folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(errors.OutputError, match="hf exists already.* --overwrite"):
        check(folder)
    with pytest.raises(errors.OutputError, match="not made by this command.*does not replace it"):
        check(folder, overwrite=True)
    ours.append(folder)
    check(folder, overwrite=True)
    with pytest.raises(errors.OutputError, match=r"notes\.txt is not a folder"):
        check(folder / "notes.txt", overwrite=True)
