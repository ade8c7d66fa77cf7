r"""Runs a declared sequence of steps: preprocess, train, export ... and keeps a ledger of them.

    python tools/run_pipeline.py --config examples/quickstart/pipeline.yaml --plan
    python tools/run_pipeline.py --config examples/quickstart/pipeline.yaml
    python tools/run_pipeline.py --config pipeline.yaml --from sft
    python tools/run_pipeline.py --config pipeline.yaml --accept-changes

The same command, started again, skips what is done and resumes what is not. The ledger, FOLDER/
ledger.json, holds for each step what it read (as hashes), its configuration, code version and
seeds, when it ran, how it ended and what it made. A step whose inputs, configuration or output are
not what the ledger says is an error, until --from or --accept-changes says that it may run again;
its old output is then moved aside. Every step, option and configuration is checked before the first
one starts.

Exit codes: 0, all steps are done. That of the step that failed. 65 an input changed while it was
read, 73 another run is at work in the folder, 75 stopped by SIGTERM between two steps (within one
the step gets the signal, and its own code counts), 78 the declaration, or a changed step, 130
Ctrl-C: the step gets SIGTERM, on which training saves; at the second Ctrl-C it quits at once.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_chimed.command_line import CommandParser
from megatron_chimed.errors import ConfigError, run_command

TOOLS = Path(__file__).resolve().parent


def main(argv: Sequence[str] | None = None) -> int:
    """Checks the declaration, then plans or runs."""
    return run_command(lambda: _run(argv))


def preset(name: str) -> dict[str, Any]:
    """What a preset says, by dotted key.

    Raises:
        ConfigError: There is none.
    """
    from megatron_chimed.config.presets import PRESETS, preset_defaults

    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is not known; there are: {', '.join(PRESETS)}.")
    return preset_defaults(name)


def _run(argv: Sequence[str] | None) -> int:
    from megatron_chimed.workflow.declaration import load_workflow
    from megatron_chimed.workflow.preparation import prepare_steps
    from megatron_chimed.workflow.runner import run_workflow, show_plan
    from megatron_chimed.workflow.staleness import RerunPolicy

    flags = _parser().parse_args(argv)
    workflow = load_workflow(flags.config)
    steps = prepare_steps(workflow, TOOLS, preset)
    policy = RerunPolicy(accept_changes=flags.accept_changes, from_step=flags.from_step)
    if flags.plan:
        show_plan(workflow, steps, policy)
        return 0
    return run_workflow(workflow, steps, policy)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="tools/run_pipeline.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, metavar="P.yaml", help="the declared steps")
    add("--plan", action="store_true", help="print what would become of each step, and why; no run")
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--from",
        dest="from_step",
        metavar="STEP",
        help="run this step again from its start, then those whose inputs differ by that; leave it "
        "out to go on after an interruption",
    )
    again.add_argument(
        "--accept-changes",
        action="store_true",
        help="run changed steps again, and those whose inputs differ by that; interrupted ones go "
        "on where only settings changed",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
