"""The demo itself: how it ends where a person stops it."""

import os
import signal

from examples.quickstart import run, stages
from examples.quickstart.demo import Demo


def test_ctrl_c_ends_the_running_step_and_says_so_in_one_line(tmp_path, monkeypatch, capsys):
    step = tmp_path / "slow.py"
    step.write_text("import time\nprint('up', flush=True)\ntime.sleep(60)\n")
    folder = tmp_path / "out"
    monkeypatch.setattr(Demo, "show", lambda self, text: os.kill(os.getpid(), signal.SIGINT))

    def prepare(demo):
        demo.say("go slowly")
        demo.run(step)

    monkeypatch.setattr(stages, "prepare", prepare)
    assert run.main(["--output", str(folder)]) == 130
    said = capsys.readouterr().err
    assert said.startswith("InterruptError: the demo stopped in step 1, after ")
    assert said.endswith(f"What it made is in {folder}; the same command starts anew.\n")
    assert said.count("\n") == 1
