r"""Runs a declared workflow (preprocess, train, export ...) and keeps a ledger of its steps.

    python tools/run_pipeline.py --config examples/quickstart/pipeline.yaml --plan
    python tools/run_pipeline.py --config examples/quickstart/pipeline.yaml
    python tools/run_pipeline.py --config pipeline.yaml --from sft
    python tools/run_pipeline.py --config pipeline.yaml --accept-changes

The same command, started again, skips finished steps and resumes unfinished ones. The ledger,
FOLDER/ledger.json, records for each step the hashes of its inputs, its configuration, code version
and seeds, when it ran, how it ended and what it wrote. A step whose inputs, configuration or output
differ from the ledger is an error, until --from or --accept-changes allows it to run again; its old
output is then moved aside. All steps, options and configurations are checked before the first step
starts.

Exit codes: 0 all steps are done; a failed step's own code; 65 an input changed while it was read;
73 another run is using the folder; 75 stopped by SIGTERM between two steps (a running step gets the
signal, and its own code counts); 78 the declaration is wrong, or a step changed; 130 Ctrl-C: the
step gets SIGTERM, on which training saves; at the second Ctrl-C it quits at once.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_chimed.command_line import CommandParser
from megatron_chimed.errors import ConfigError, closest, run_command

TOOLS = Path(__file__).resolve().parent


def main(argv: Sequence[str] | None = None) -> int:
    """Checks the declaration, then plans or runs."""
    return run_command(lambda: _run(argv))


def preset(name: str) -> dict[str, Any]:
    """The settings of a preset, by dotted key.

    Raises:
        ConfigError: There is no preset of this name.
    """
    from megatron_chimed.config.presets import PRESETS, preset_defaults

    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is unknown{closest(name, PRESETS)}.")
    return preset_defaults(name)


def _run(argv: Sequence[str] | None) -> int:
    from megatron_chimed.workflow.declaration import load_pipeline
    from megatron_chimed.workflow.runner import run_pipeline, show_plan
    from megatron_chimed.workflow.staleness import Consent
    from megatron_chimed.workflow.work import prepare

    flags = _parser().parse_args(argv)
    pipeline = load_pipeline(flags.config)
    works = prepare(pipeline, TOOLS, preset)
    consent = Consent(accept_changes=flags.accept_changes, start=flags.start)
    if flags.plan:
        show_plan(pipeline, works, consent)
        return 0
    return run_pipeline(pipeline, works, consent)


def _parser() -> CommandParser:
    parser = CommandParser(prog="tools/run_pipeline.py", description=__doc__)
    add = parser.add_argument
    add("--config", type=Path, required=True, metavar="P.yaml", help="the declared steps")
    add(
        "--plan",
        action="store_true",
        help="print what would happen to each step, and why; run nothing",
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--from",
        dest="start",
        metavar="STEP",
        help="run this step again from its start, then the steps whose inputs it changes; not "
        "needed to resume after an interruption",
    )
    again.add_argument(
        "--accept-changes",
        action="store_true",
        help="run changed steps again, and the steps whose inputs they change; interrupted steps "
        "whose settings alone changed resume",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
