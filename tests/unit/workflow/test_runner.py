"""A pipeline is run, interrupted, changed and run again; commands are stand-ins of a few lines."""

import os
import signal
import types
from pathlib import Path

import pytest

from megatron_chimed import files
from megatron_chimed.errors import (
    ConfigError,
    DataError,
    InterruptError,
    OutputError,
    ParallelError,
)
from megatron_chimed.workflow import runner
from megatron_chimed.workflow.commands import Stopper
from tests.unit.workflow.fakes import TIMEOUT_SECONDS, make_project


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


@pytest.fixture
def chain(project):
    """Three steps, each reading the one before; the texts are appended."""
    project.steps = {
        "one": {"kind": "tokenizer", "options": {"input": str(project.folder / "a.txt")}},
        "two": {"kind": "tokenizer", "options": {"input": "${one}", "text": "b"}},
        "three": {"kind": "tokenizer", "options": {"input": ["${one}", "${two}"], "text": "c"}},
    }
    project.declare(project.steps)
    return project


def plan_lines(text: str) -> dict[str, list[str]]:
    """State and reason of each step in a printed plan."""
    rows = (line.split(maxsplit=3) for line in text.splitlines() if line[:4].strip().isdigit())
    return {name: [state, why] for _, name, state, why in rows}


def test_every_step_runs_once_and_the_ledger_says_from_what(chain, capsys):
    assert chain.run() == 0
    assert (chain.out / "three").read_text() == "aabc"
    shown = capsys.readouterr().out
    assert "[3/3] three: done in" in shown and "    | joining 2 inputs" in shown
    record = chain.ledger()["steps"]["three"]
    assert [item["path"] for item in record["inputs"]] == [
        str(chain.out / name) for name in ("one", "two")
    ]
    assert record["inputs"][1]["hashes"] == {"two": files.sha256_file(chain.out / "two")}
    assert record["output_hashes"] == {"three": files.sha256_file(chain.out / "three")}
    (attempt,) = record["attempts"]
    assert attempt["exit_code"] == 0 and attempt["ended"] >= attempt["started"]
    assert set(attempt["code_version"]) == {"version", "commit", "modified"}
    assert chain.run() == 0
    assert chain.starts() == {"one": 1, "two": 1, "three": 1}


def test_a_plan_writes_nothing(chain, capsys):
    chain.plan()
    assert not chain.out.exists()
    assert plan_lines(capsys.readouterr().out) == {
        "one": ["run", "new"],
        "two": ["run", "new, reads one"],
        "three": ["run", "new, reads one and two"],
    }


def test_a_changed_input_is_refused_until_it_is_accepted(chain, capsys):
    chain.run()
    (chain.folder / "a.txt").write_text("A")
    capsys.readouterr()
    for start in (chain.plan, chain.run):
        with pytest.raises(ConfigError, match="blocked") as error:
            start()
        assert "one: input" in str(error.value) and "a.txt changed" in str(error.value)
        assert "give --from one to run that step" in str(error.value)
        lines = plan_lines(capsys.readouterr().out)
        assert lines["two"] == ["blocked", "again, unless they come out as before: it reads one"]
    assert chain.starts() == {"one": 1, "two": 1, "three": 1}
    chain.plan(accept_changes=True)
    assert plan_lines(capsys.readouterr().out)["one"][0] == "run"
    assert chain.run(accept_changes=True) == 0
    assert (chain.out / "three").read_text() == "AAbc"
    assert (chain.out / "three.replaced-1").read_text() == "aabc"
    assert chain.ledger()["replaced"][0]["moved_to"] == str(chain.out / "one.replaced-1")


def test_what_depends_on_a_step_stays_done_if_its_output_comes_out_the_same(chain, capsys):
    chain.run()
    assert chain.run(start="one") == 0
    assert chain.starts() == {"one": 2, "two": 1, "three": 1}
    assert "[2/3] two: still done, it would read the same" in capsys.readouterr().out
    assert chain.run() == 0
    assert chain.starts()["one"] == 2


def test_from_a_step_allows_its_changes_and_no_others(chain):
    chain.run()
    chain.steps["two"]["options"]["text"] = "B"
    chain.declare(chain.steps)
    with pytest.raises(ConfigError, match="two: text was 'b' and is 'B'"):
        chain.run(start="three")
    assert chain.run(start="two") == 0
    assert chain.starts() == {"one": 1, "two": 2, "three": 2}
    assert (chain.out / "three").read_text() == "aaBc"


def test_from_an_unknown_step(chain):
    with pytest.raises(ConfigError, match="--from four: the steps are one, two, three"):
        chain.plan(start="four")


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_an_output_that_was_touched_is_not_used(chain, damage):
    chain.run()
    (chain.out / "two").write_text("x") if damage == "changed" else (chain.out / "two").unlink()
    with pytest.raises(ConfigError, match="two: its output.*(changed|does not exist)"):
        chain.run()
    assert chain.run(accept_changes=True) == 0
    assert chain.starts() == {"one": 1, "two": 2, "three": 1}


def test_an_output_that_the_ledger_does_not_know_is_not_overwritten(chain):
    chain.out.mkdir()
    (chain.out / "two").write_text("mine")
    with pytest.raises(ConfigError, match="two exists, but the ledger does not know it"):
        chain.run()
    assert (chain.out / "two").read_text() == "mine" and not (chain.out / "one").exists()


def test_a_failing_step_passes_its_code_on_and_shows_its_last_lines(chain, capsys):
    chain.steps["two"]["options"]["exit"] = 65
    chain.declare(chain.steps)
    assert chain.run() == 65
    told = capsys.readouterr()
    assert "[2/3] two: failed with exit code 65" in told.err
    assert "    | joining 1 inputs" in told.err
    assert "joining 1 inputs" in (chain.out / "logs/two.log").read_text()
    assert not (chain.out / "three").exists()
    del chain.steps["two"]["options"]["exit"]
    chain.declare(chain.steps)  # it left nothing that the change could be mixed with
    assert chain.run() == 0
    assert "left nothing behind; changed since: exit was 65" in capsys.readouterr().out
    assert chain.starts() == {"one": 1, "two": 2, "three": 1}
    codes = [attempt["exit_code"] for attempt in chain.ledger()["steps"]["two"]["attempts"]]
    assert codes == [65, 0]


def test_a_step_that_ends_well_without_output_is_an_error(chain):
    chain.steps["one"]["options"]["nothing"] = True
    chain.declare(chain.steps)
    with pytest.raises(OutputError, match="step one ended with exit code 0, but its output"):
        chain.run()
    assert chain.ledger()["steps"]["one"]["output_hashes"] is None


def test_an_input_that_changes_while_it_is_read(chain, monkeypatch):
    def run_and_change(command, *rest):
        Path(chain.out / "one").write_text("a")
        (chain.folder / "a.txt").write_text("later")
        return 0

    monkeypatch.setattr(runner, "run_logged", run_and_change)
    with pytest.raises(DataError, match=r"what it read changed meanwhile: .*a\.txt changed"):
        chain.run()
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="one: input"):
        chain.run()
    assert chain.run(start="one") == 0
    assert (chain.out / "one").read_text() == "later"


def test_options_that_change_no_result_leave_a_step_done(project, capsys):
    step = {"kind": "generate", "options": {"prompts": str(project.folder / "a.txt")}}
    project.declare({"one": step})
    project.run()
    project.declare({"one": step | {"options": step["options"] | {"max-batch": 8}}})
    capsys.readouterr()
    assert project.run() == 0
    assert "(max-batch was not set and is 8, which changes no result)" in capsys.readouterr().out
    assert project.starts() == {"one": 1}


def test_two_runs_in_one_folder(chain):
    chain.out.mkdir()
    with files.locked(chain.out / ".lock", "process 7 on elsewhere"):
        with pytest.raises(OutputError, match="in use by process 7 on elsewhere: one pipeline"):
            chain.run()
    assert not (chain.out / "one").exists()


def test_a_missing_input_stops_the_run_before_its_first_step(chain):
    chain.steps["three"]["inputs"] = "notes.txt"
    chain.declare(chain.steps)
    with pytest.raises(ConfigError, match="three: inputs: notes.txt does not exist"):
        chain.run()
    assert not (chain.out / "one").exists()


def test_a_damaged_ledger(chain):
    chain.run()
    (chain.out / "ledger.json").write_text("{}")
    with pytest.raises(DataError, match="ledger.json is damaged: .*Restore it"):
        chain.run()


def held(project, wait):
    """Two steps; the second one runs until it is stopped. Its process, and the pipe it holds."""
    os.mkfifo(project.folder / "pipe")
    options = {"prompts": "${one}", "pipe": str(project.folder / "pipe"), "wait": wait}
    project.steps = {
        "one": {"kind": "tokenizer", "options": {"input": str(project.folder / "a.txt")}},
        "two": {"kind": "generate", "options": options},
    }
    project.declare(project.steps)
    process = project.spawn()
    pipe = open(project.folder / "pipe")  # noqa: SIM115  returns when the step runs
    assert pipe.read(5) == "ready"
    return process, pipe


@pytest.mark.timing
@pytest.mark.parametrize(
    ("number", "code", "how"),
    [(signal.SIGTERM, 75, "a signal"), (signal.SIGINT, 130, "Ctrl-C")],
)
def test_a_signal_goes_to_the_step_which_saves_and_goes_on_later(project, number, code, how):
    process, pipe = held(project, "save")
    with pipe:
        process.send_signal(number)
        out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == code, err
    assert f"[2/2] two: stopped by {how} with exit code 75" in err
    assert (project.out / "two.jsonl").read_text() == "saved"
    del project.steps["two"]["options"]["wait"]
    project.declare(project.steps)
    with pytest.raises(ConfigError, match="two: wait was 'save' and is not set"):
        project.run()
    assert project.run(accept_changes=True) == 0
    assert project.starts() == {"one": 1, "two": 2} and project.ledger()["replaced"] == []


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGTERM, ParallelError), (signal.SIGINT, InterruptError)]
)
def test_a_signal_between_steps(chain, monkeypatch, number, kind):
    execute = runner._Run._execute

    def and_signal(self, work, label):
        code = execute(self, work, label)
        os.kill(os.getpid(), number)
        return code

    monkeypatch.setattr(runner._Run, "_execute", and_signal)
    with pytest.raises(kind, match="stopped before step two"):
        chain.run()
    monkeypatch.undo()
    assert chain.run() == 0
    assert chain.starts() == {"one": 1, "two": 1, "three": 1}


@pytest.mark.parametrize(
    ("pressed", "passed_on"),
    [
        ("I", ["SIGTERM"]),
        ("III", ["SIGTERM", "SIGINT", "SIGKILL"]),
        ("TT", ["SIGTERM", "SIGTERM"]),  # as schedulers send it
        ("TTI", ["SIGTERM", "SIGTERM", "SIGINT"]),
    ],
)
def test_each_ctrl_c_asks_a_step_more_firmly(monkeypatch, pressed, passed_on):
    sent = []
    monkeypatch.setattr(os, "killpg", lambda pid, number: sent.append(signal.Signals(number).name))
    step = types.SimpleNamespace(pid=0, returncode=None)
    with Stopper() as stopper, stopper.attached(step):
        for key in pressed:
            os.kill(os.getpid(), signal.SIGINT if key == "I" else signal.SIGTERM)
        assert stopper.is_asked and stopper.is_interrupted == ("I" in pressed)
    assert sent == passed_on


@pytest.mark.timing
def test_a_step_does_not_outlive_a_pipeline_that_is_killed(project, capsys):
    process, pipe = held(project, "for ever")
    with pipe:
        process.kill()
        process.communicate(timeout=TIMEOUT_SECONDS)
        assert pipe.read() == ""  # its end was closed: the step is gone
    (attempt,) = project.ledger()["steps"]["two"]["attempts"]
    assert attempt["exit_code"] is None
    project.plan()
    lines = plan_lines(capsys.readouterr().out)
    assert lines["one"][0] == "done" and lines["two"] == ["resume", "was interrupted"]


def test_a_kill_between_the_output_and_its_record_costs_nothing(project, capsys, monkeypatch):
    project.declare(
        {"one": {"kind": "tokenizer", "options": {"input": str(project.folder / "a.txt")}}}
    )

    def killed(self, work):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner._Run, "_outputs", killed)
    with pytest.raises(KeyboardInterrupt):
        project.run()
    monkeypatch.undo()
    assert project.run() == 0
    assert "[1/1] one: its output is complete and only to be recorded" in capsys.readouterr().out
    record = project.ledger()["steps"]["one"]
    assert len(record["attempts"]) == 1 and record["output_hashes"]
    assert project.ledger()["replaced"] == []


def test_consent_outlives_a_kill(chain, monkeypatch):
    """Killed in the middle of what --from started, the run goes on without the flag."""
    chain.run()
    (chain.folder / "a.txt").write_text("A")
    perform = runner._Run._perform

    def killed_at_two(self, work, outlook, label):
        if work.step.name == "two":
            raise KeyboardInterrupt
        return perform(self, work, outlook, label)

    monkeypatch.setattr(runner._Run, "_perform", killed_at_two)
    with pytest.raises(KeyboardInterrupt):
        chain.run(start="one")
    monkeypatch.undo()
    assert chain.run() == 0
    assert chain.starts() == {"one": 2, "two": 2, "three": 2}
    assert (chain.out / "three").read_text() == "AAbc"
