"""Everything that only a GPU can tell, in one run of under 8 minutes on one H200.

    python benchmarks/device_check.py               # results in bench_out/device_check.json
    python benchmarks/device_check.py --list        # the items, in the order of their value
    python benchmarks/device_check.py --items accuracy,steps
    python benchmarks/device_check.py --rehearse    # tiny sizes, no GPU: finds typing errors
    python benchmarks/device_check.py --bundle DIR  # what a machine without network needs
    python benchmarks/device_check.py --format FILE # its results as rows of RESULTS.md

Each item is a process of its own with a time limit, so that a hang or a crash in one costs the
others nothing. The JSON is replaced after every item; an item that failed keeps its message and the
rows that it had. At the end of the time nothing more is started. The exit code is 0 only if every
item ran to its end; goals that were missed do not change it.
"""

import argparse
import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from megatron_chimed.command_line import CommandParser
from megatron_chimed.errors import ConfigError, run_command
from megatron_chimed.files import write_json

ROOT = Path(__file__).resolve().parent.parent
DONE, FAILED, TIMED_OUT, SKIPPED = "done", "failed", "timed out", "no time"
ERROR_CHARACTERS = 6000
LEAST_SECONDS = 8.0  # less is not enough to import torch and measure anything
STACK_SECONDS = 2.0
REHEARSAL_PATIENCE = 10  # times the limits: a rehearsal is often beside other work
REAP_SECONDS = 5.0  # how long a killed process may take to go away


@dataclass(frozen=True, kw_only=True)
class Item:
    """One process of the check."""

    name: str
    module: str
    """In `device_items`; its `run(context)` does the work."""
    limit: float
    """Seconds after which it is killed."""
    about: str


ITEMS = (
    Item(name="environment", module="environment", limit=40, about="versions, what is missing"),
    Item(name="library", module="library", limit=100, about="loads the kernels, or builds them"),
    Item(name="rates", module="rates", limit=30, about="copy bandwidth and matmul rate"),
    Item(
        name="accuracy",
        module="accuracy",
        limit=70,
        about="kernels against float64: 13B shapes, unaligned, past 2^31 elements",
    ),
    Item(name="steps", module="steps", limit=100, about="8 layers of 13B geometry at 4,096"),
    Item(
        name="kernels",
        module="kernel_times",
        limit=60,
        about="each kernel as a fraction of the copy bandwidth, beside torch, Liger, megatron-core",
    ),
    Item(
        name="training",
        module="training",
        limit=60,
        about="tiny packed SFT, bf16 and fp16, save, resume, out of memory",
    ),
    Item(name="decode", module="decode", limit=60, about="ms per decoding step of 13B"),
    Item(name="tests", module="tests", limit=80, about="pytest -m gpu"),
    Item(name="llama", module="llama_steps", limit=50, about="8 layers of Llama 3 8B geometry"),
    Item(
        name="compiled",
        module="compiled_times",
        limit=70,
        about="torch.compile and megatron-core's compiled ops as baselines",
    ),
    Item(name="sanitizer", module="sanitizer", limit=90, about="compute-sanitizer on small shapes"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    options = _parser().parse_args(argv)
    if options.list:
        for item in ITEMS:
            print(f"{item.name:14}{item.limit:4.0f} s  {item.about}")
        return 0
    if options.format:
        from device_items.report import markdown

        print(markdown(json.loads(options.format.read_text(encoding="utf-8"))), end="")
        return 0
    if options.bundle:
        from device_items.bundle import make_bundle

        make_bundle(options.bundle, options.also)
        return 0
    if options.run_item:
        # A crash, or a hang just before it is killed, shows where it was.
        faulthandler.enable()
        faulthandler.dump_traceback_later(max(1.0, options.limit_seconds - STACK_SECONDS))
        return run_here(options.run_item, rehearse=options.rehearse, rows=options.rows)
    if not options.rehearse:
        _require_gpu()
    return run_all(options)


def run_all(options: argparse.Namespace) -> int:
    """Runs the chosen items one after the other."""
    from device_items.report import summary

    begin = time.monotonic()
    result: dict[str, Any] = {
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "command": " ".join(["device_check.py", *sys.argv[1:]]),
        "commit": _commit(),
        "rehearsal": options.rehearse,
        "limit_seconds": options.limit_seconds,
        "items": {},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for item in _chosen(options.items):
        left = options.limit_seconds - (time.monotonic() - begin)
        if left < min(LEAST_SECONDS, item.limit):
            outcome = _outcome(SKIPPED, error=f"{left:.0f} s of {options.limit_seconds:.0f} left")
        else:
            print(f"{item.name}: {item.about} ...", flush=True)
            run = run_in_this_process if options.in_process else run_in_process
            patience = REHEARSAL_PATIENCE if options.rehearse else 1
            seconds = min(item.limit * patience, left)
            outcome = run(item, seconds=seconds, rehearse=options.rehearse)
        result["items"][item.name] = outcome
        result["seconds"] = round(time.monotonic() - begin, 1)
        write_json(options.output, result)
    print(summary(result))
    print(f"written to {options.output}")
    return int(any(item["status"] != DONE for item in result["items"].values()))


def run_in_process(item: Item, *, seconds: float, rehearse: bool) -> dict[str, Any]:
    """Runs an item in a new process and session, killed with all its children at its limit."""
    with tempfile.TemporaryDirectory(prefix="device-check-") as folder:
        rows, log = Path(folder, "rows.json"), Path(folder, "log")
        command = item_command(item, rows=rows, seconds=seconds, rehearse=rehearse)
        environment = {**os.environ, "PYTHONPATH": _python_path()}
        begin = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill_session(process)
        took = time.monotonic() - begin
        tail = log.read_text(encoding="utf-8", errors="replace")[-ERROR_CHARACTERS:]
        found = json.loads(rows.read_text(encoding="utf-8")) if rows.is_file() else []
    if code == 0:
        return _outcome(DONE, rows=found, seconds=took)
    if code is None:
        error = f"{tail}\nkilled after {seconds:.0f} s"
        return _outcome(TIMED_OUT, rows=found, seconds=took, error=error)
    ending = f"\nended by signal {-code}" if code < 0 else ""
    return _outcome(FAILED, rows=found, seconds=took, error=tail + ending)


def item_command(item: Item, *, rows: Path, seconds: float, rehearse: bool) -> list[str]:
    """The command of an item's own process."""
    command = [sys.executable, "-u", __file__, "--run-item", item.name, "--rows", str(rows)]
    command += ["--limit-seconds", f"{seconds:g}"]
    return [*command, "--rehearse"] if rehearse else command


def run_in_this_process(item: Item, *, seconds: float, rehearse: bool) -> dict[str, Any]:
    """The same without a process of its own and without a limit, for the rehearsal in the tests."""
    begin, error = time.monotonic(), ""
    with tempfile.TemporaryDirectory(prefix="device-check-") as folder:
        rows = Path(folder, "rows.json")
        try:
            run_here(item.name, rehearse=rehearse, rows=rows)
        except Exception:
            error = traceback.format_exc()[-ERROR_CHARACTERS:]
        found = json.loads(rows.read_text(encoding="utf-8")) if rows.is_file() else []
    status = FAILED if error else DONE
    return _outcome(status, rows=found, seconds=time.monotonic() - begin, error=error)


def run_here(name: str, *, rehearse: bool, rows: Path) -> int:
    """The work of one item, in this process."""
    from device_items.context import make_context

    (item,) = _chosen(name)
    with tempfile.TemporaryDirectory(prefix="device-item-") as folder:
        context = make_context(rehearse=rehearse, rows=rows, folder=Path(folder))
        import_module(f"device_items.{item.module}").run(context)
    return 0


def _outcome(
    status: str, *, rows: Sequence[dict] = (), seconds: float | None = None, error: str = ""
) -> dict[str, Any]:
    took = None if seconds is None else round(seconds, 2)
    return {"status": status, "seconds": took, "rows": list(rows), "error": error}


def _kill_session(process: subprocess.Popen) -> None:
    """Ends a process and its children; one that hangs in the driver is not waited for."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    try:
        process.wait(timeout=REAP_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"process {process.pid} does not end; going on without it", file=sys.stderr)


def _chosen(names: str) -> list[Item]:
    """The named items in their order; all without a name.

    Raises:
        ConfigError: A name is not an item's.
    """
    wanted = [name for name in names.split(",") if name]
    known = [item.name for item in ITEMS]
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(f"no item is called {', '.join(unknown)}. Choose from {','.join(known)}.")
    return [item for item in ITEMS if not wanted or item.name in wanted]


def _require_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            f"torch {torch.__version__} sees no GPU here, so nothing can be measured. Run it where "
            "there is one, or rehearse it: --rehearse."
        )


def _python_path() -> str:
    given = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join([str(ROOT), *([given] if given else [])])


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__})"
    return done.stdout.strip()


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="device_check.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--items", default="", help="comma-separated names (all)")
    add("--list", action="store_true", help="print the items and their limits, and stop")
    add("--limit-seconds", type=_seconds, default=480.0, help="of the whole run (480)")
    add(
        "--output",
        type=Path,
        default=Path("bench_out/device_check.json"),
        help="result (bench_out/device_check.json)",
    )
    add("--rehearse", action="store_true", help="tiny sizes on the CPU; the figures mean nothing")
    add("--in-process", action="store_true", help="items in this process: no limits, one import")
    add("--bundle", type=Path, metavar="DIR", help="collect what a machine without network needs")
    add("--also", nargs="*", default=[], metavar="PACKAGE", help="more packages for --bundle")
    add("--format", type=Path, metavar="FILE", help="print a result as rows of RESULTS.md")
    add("--run-item", default="", help=argparse.SUPPRESS)
    add("--rows", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
