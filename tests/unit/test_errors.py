"""A user's error is one message and its exit code; a bug keeps its traceback."""

import errno

import pytest

from megatron_chimed import errors

EXIT_CODES = {
    errors.ConfigError: 78,
    errors.DataError: 65,
    errors.OutputError: 73,
    errors.CheckpointError: 74,
    errors.ParallelError: 75,
    errors.UnsafeInputError: 77,
    errors.NumericError: 17,
    errors.KernelError: 70,
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
    assert len({cls.exit_code for cls in EXIT_CODES} | {0, errors.ChimedError.exit_code}) == 10


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
    assert "No space left on device: 'P.bin'" in capsys.readouterr().err


def test_a_misspelt_flag_is_named_before_what_is_missing():
    parser = errors.CommandParser(prog="x.py")
    parser.add_argument("--tokenizer", required=True)
    for flag in ("--tokeniser", "--token"):
        with pytest.raises(errors.ConfigError, match=f"unrecognized arguments: {flag}. See"):
            parser.parse_args([flag, "a"])
    with pytest.raises(errors.ConfigError, match="--tokenizer"):
        parser.parse_args([])


def test_an_interrupt_exits_like_a_shell(capsys):
    assert errors.run_command(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_is_not_dressed_up():
    with pytest.raises(ZeroDivisionError):
        errors.run_command(lambda: 1 // 0)


def test_a_file_that_is_there_is_replaced_only_when_asked(tmp_path):
    path = tmp_path / "out.jsonl"
    errors.check_output("--output", path)
    path.write_text("paid for")
    said = f"--output: {path} exists, and nothing is written over unasked.*--overwrite"
    with pytest.raises(errors.OutputError, match=said):
        errors.check_output("--output", path)
    errors.check_output("--output", path, overwrite=True)
    with pytest.raises(errors.ConfigError, match="an input, which it would replace"):
        errors.check_output("--output", path, path, overwrite=True)
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(errors.OutputError, match="exists"):
        errors.check_output("--output", dangling)


def test_a_folder_is_replaced_only_if_the_command_made_it(tmp_path):
    def check(path, **options):
        errors.check_output_folder("--output", path, marker="config.json", **options)

    folder = tmp_path / "hf"
    check(folder)
    folder.mkdir()
    check(folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(errors.OutputError, match="hf exists, and nothing .* --overwrite"):
        check(folder)
    with pytest.raises(errors.OutputError, match="config.json among them.*does not replace it"):
        check(folder, overwrite=True)
    (folder / "config.json").write_text("{}")
    check(folder, overwrite=True)
    (folder / "pictures").mkdir()
    with pytest.raises(errors.OutputError, match="does not replace it"):
        check(folder, overwrite=True)
    with pytest.raises(errors.OutputError, match=r"notes\.txt is no folder"):
        check(folder / "notes.txt", overwrite=True)
