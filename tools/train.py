r"""Trains one stage of a model, on one process or on many.

    python tools/train.py --config run.yaml
    python tools/launch.py --nproc-per-node 2 --run-folder runs/tp2 \
        tools/train.py --config run.yaml --parallel.tensor_parallel_size 2 --output_dir runs/tp2
    python tools/train.py --preset ziya_13b --config run.yaml --dry-run --world-size 16

The same command resumes a run that stopped: it goes on from the newest valid checkpoint in
`output_dir`, at whatever layout it is now given. Ctrl-C saves the step in hand and ends with exit
code 130, SIGTERM with 75; a second Ctrl-C quits at once. docs/running.md says what is kept, what
disk it takes, and what plain torchrun does differently.
"""

import sys
from collections.abc import Sequence

from megatron_chimed.command_line import CommandParser, parse_planning
from megatron_chimed.errors import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Parses, checks, joins the other ranks and trains."""
    return run_command(lambda: _run(sys.argv[1:] if argv is None else list(argv)))


def _run(argv: list[str]) -> int:
    from megatron_chimed.config import make_parser, parse_run_config
    from megatron_chimed.config.presets import PRESETS, preset_defaults
    from megatron_chimed.engine import world_from_environment
    from megatron_chimed.run import plan_training, run_training

    own = CommandParser(prog="tools/train.py", add_help=False, allow_abbrev=False)
    own.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        help="fills the model section, and tiny its recipe; config and overrides win",
    )
    flags, rest = parse_planning(
        own, argv, "check config, data and layout, print the memory plan, train nothing"
    )
    # The command's own flags are no part of the configuration that --print_config writes.
    parser = make_parser("tools/train.py", __doc__, own.format_help().partition("\n\n")[2])
    if flags.preset:
        parser.set_defaults(preset_defaults(flags.preset))
    config = parse_run_config(parser, rest)
    rank, world_size, local_rank = world_from_environment()
    if flags.dry_run:
        return plan_training(config, world_size=flags.world_size or world_size)
    return run_training(config, rank=rank, world_size=world_size, local_rank=local_rank)


if __name__ == "__main__":
    sys.exit(main())
