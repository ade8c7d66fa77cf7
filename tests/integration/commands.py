"""The project's commands as a user starts them, and a small project for them to work on."""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import yaml

from megatron_chimed import engine
from megatron_chimed.config.parsing import ConfigParser
from megatron_chimed.config.run_config import RunConfig
from megatron_chimed.errors import ChimedError, run_command
from megatron_chimed.observe.metrics import read_metrics
from megatron_chimed.run import open_inputs, train_stage
from tests.unit.tokenizer.samples import LINES, train_model

ROOT = Path(__file__).resolve().parents[2]
PYTHON = (sys.executable,)
TIMEOUT_SECONDS = 120
MODEL = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "ffn_hidden_size": 48,
    "max_position_embeddings": 64,
}


CLASS_OF = {kind.exit_code: kind.__name__ for kind in ChimedError.__subclasses__()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


def torchrun(num_ranks: int) -> tuple[str, ...]:
    """The launcher, to be given to `spawn` before a script."""
    launcher = (*PYTHON, "-m", "torch.distributed.run", "--standalone")
    return (*launcher, "--nproc-per-node", str(num_ranks))


def call(tool: str, *words) -> Outcome:
    """Runs `tools/{tool}.py` in this process."""
    module = importlib.import_module(f"tools.{tool}")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command(lambda: module.main([str(word) for word in words]))
    return Outcome(code=code, out=out.getvalue(), err=err.getvalue())


def spawn(tool: str, *words, launcher=PYTHON) -> subprocess.Popen:
    """Starts `tools/{tool}.py` in a process of its own; `finish` must follow."""
    return subprocess.Popen(
        [*launcher, f"tools/{tool}.py", *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, timeout: float = TIMEOUT_SECONDS) -> Outcome:
    """Waits for the end; one that does not come is forced."""
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        kill_tree(process.pid)
        process.communicate()
        raise
    return Outcome(code=process.returncode, out=out, err=err)


def read_until(process: subprocess.Popen, start: str) -> str:
    """The first line of standard output that begins so; kills everything if none comes."""
    watchdog = threading.Timer(TIMEOUT_SECONDS, kill_tree, (process.pid,))
    watchdog.start()
    try:
        return next(line for line in process.stdout if line.startswith(start))
    except StopIteration:
        raise AssertionError(f"no line {start!r}: {finish(process).err}") from None
    finally:
        watchdog.cancel()


def child_of_rank(process: subprocess.Popen, rank: int) -> int:
    """Process id of one of torchrun's ranks."""
    for child in children_of(process.pid):
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return child
    raise AssertionError(f"torchrun has no child of rank {rank}")


def children_of(pid: int) -> list[int]:
    """Process ids of the children of a process, on Linux."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_tree(pid: int) -> None:
    """Ends a process and its children; torchrun's have process groups of their own."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        children = children_of(pid)
        for member in (pid, *children):
            os.kill(member, signal.SIGKILL)


def make_project(folder: Path, lines=LINES * 20, model: bytes | None = None) -> Path:
    """Makes tokenizer, token files and `run.yaml` in a new folder; returns the last."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(model or train_model())
    rows = (json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in lines)
    (folder / "corpus.jsonl").write_text("".join(rows), encoding="utf-8")
    done = call("preprocess_data", *preprocess_words(folder, folder / "corpus.jsonl", "data"))
    assert done.code == 0, done.err
    return write_config(folder, vocab_size=400)


def preprocess_words(folder: Path, corpus: Path, name: str) -> list[str | Path]:
    """The command line that makes the token files `folder/name` of a corpus."""
    tokenizer = ("--tokenizer", folder / "tokenizer.model")
    return ["--input", corpus, *tokenizer, "--output-prefix", folder / name]


def write_config(folder: Path, *, vocab_size: int, seq_length: int = 16) -> Path:
    """Writes `run.yaml` for the token files `folder/data`."""
    config = {
        "output_dir": str(folder / "run"),
        "tokenizer": str(folder / "tokenizer.model"),
        "model": {"vocab_size": vocab_size, **MODEL},
        "data": {"train": str(folder / "data"), "seq_length": seq_length},
        "optim": {"lr": 1e-3},
        "training": {
            "train_steps": 6,
            "micro_batch_size": 2,
            "global_batch_size": 4,
            "precision": "fp32",
        },
        "logging": {"progress": "plain", "log_interval": 1, "tensorboard": False},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def read_run_config(*words) -> RunConfig:
    """What `tools/train.py` makes of its command line."""
    parser = ConfigParser(RunConfig, "train.py")
    return parser.config(parser.parse_args([str(word) for word in words]))


def train_in_pool(rank, world_size, store_path, words) -> None:
    """What `tools/train.py` does as one rank, with a file for rendezvous."""
    import torch.distributed as dist

    config = read_run_config(*words)
    inputs = open_inputs(config, world_size)
    store = dist.FileStore(store_path, world_size)
    ranks = engine.join(inputs.layout, rank=rank, local_rank=rank, store=store)
    try:
        train_stage(inputs.config, inputs, ranks)
    finally:
        engine.leave()


def train_events(run: Path) -> list[dict]:
    """The training steps in a run's `metrics.jsonl`, in file order."""
    return [event for event in read_metrics(run / "metrics.jsonl") if event["kind"] == "train"]


def train_steps(run: Path) -> list[int]:
    """Their numbers."""
    return [event["step"] for event in train_events(run)]


def train_losses(run: Path) -> list[float]:
    """Their losses."""
    return [event["loss"] for event in train_events(run)]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content, hidden and temporary ones too."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def assert_refused(done, code, *fragments):
    """One line that begins with the class of the error, and no step of training before it."""
    assert done.code == code, done.err
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith(f"{CLASS_OF[code]}: "), done.err
    for fragment in fragments:
        assert fragment in done.err, done.err
    assert "step " not in done.out
