"""Rounds of rejection sampling that are killed: a command to be started by tests.

    python -m tests.integration.mortal chain SNAPSHOTS DEATHS WORDS...
    torchrun ... -m tests.integration.mortal once RANK DEATH WORDS...

`chain` runs tools/rejection_sample.py again and again, each time in a process of its own that kills
itself as the next of DEATHS says, and at last in one that lives. After each kill it copies what was
kept to SNAPSHOTS/NUMBER. `once` kills one rank. A death is `N` or `N:NAME`: before the N-th
operation of those in `OPERATIONS`, or of one of them.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

from megatron_chimed.generation import resumable
from megatron_chimed.rejection import (
    candidate_sampling,
    candidate_scoring,
    round_training,
    rounds,
)
from megatron_chimed.training import loop
from tools import rejection_sample

SLICE = 7  # so that scores are kept on the way
KEPT = (".*.partial-*", ".*.scores")
OPERATIONS = (
    *((os, name) for name in ("replace", "rename")),
    (resumable.PartialCompletions, "add"),
    (candidate_scoring, "score_sequences"),
    (candidate_sampling, "answer_log_probs"),
    (loop, "run_schedule"),
    (rounds, "measure_round"),
    (round_training, "write_selected"),
    (Path, "symlink_to"),
    (Path, "unlink"),
)


def die_before(death):
    """Counts operations from now on; this process is killed before the one that is named."""
    count, _, only = death.partition(":")
    left = int(count)

    def watched(call, name):
        def wrapped(*args, **kwargs):
            nonlocal left
            left -= only in ("", name)
            if left == 0:
                print(f"killed before {name}", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapped

    for owner, name in OPERATIONS:
        setattr(owner, name, watched(getattr(owner, name), name))


def chain(snapshots, deaths, words):
    """Starts until a start ends by itself."""
    folder = Path(words[words.index("--output-dir") + 1])
    for number, death in enumerate([*deaths.split(","), "0"]):
        if not _start(words, death):
            print(f"ended after {number} kills", flush=True)
            return
        for path in [path for kept in KEPT for path in folder.rglob(kept)]:
            target = Path(snapshots, str(number), path.relative_to(folder))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def _start(words, death):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            die_before(death)
            code = rejection_sample.main(words)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "a start failed, see its output"
    return False


def main(argv):
    candidate_scoring.SLICE = SLICE
    if argv[0] == "chain":
        return chain(argv[1], argv[2], argv[3:])
    if os.environ["RANK"] == argv[1]:
        die_before(argv[2])
    return rejection_sample.main(argv[3:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
