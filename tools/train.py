r"""Trains one stage of a model, on one process or on many.

    python tools/train.py --config run.yaml
    python tools/launch.py --nproc-per-node 2 --run-folder runs/tp2 \
        tools/train.py --config run.yaml --parallel.tensor_parallel_size 2 --output-dir runs/tp2
    python tools/train.py --preset ziya_13b --config run.yaml --dry-run --world-size 16

The same command resumes a run that stopped: it continues from the newest valid checkpoint in
`output_dir`, at whatever layout it is now given. Ctrl-C saves the current step and exits with code
130, SIGTERM with 75; a second Ctrl-C quits at once. docs/running.md says what is kept, how much
disk space that takes, and how plain torchrun differs.
"""

import sys
from collections.abc import Sequence

from megatron_chimed.command_line import add_planning_flags, check_planning_flags
from megatron_chimed.config.parsing import ConfigParser
from megatron_chimed.config.presets import PRESETS, preset_defaults
from megatron_chimed.config.run_config import RunConfig
from megatron_chimed.errors import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Parses, checks, joins the other ranks and trains."""
    return run_command(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    flags = parser.parse_args(argv)
    check_planning_flags(flags)
    config = parser.config(flags, preset_defaults(flags.preset) if flags.preset else {})
    # Only now: these import torch and megatron-core, which takes seconds.
    from megatron_chimed.engine import world_from_environment
    from megatron_chimed.run import plan_training, run_training

    rank, world_size, local_rank = world_from_environment()
    if flags.dry_run:
        return plan_training(config, world_size=flags.world_size or world_size)
    return run_training(config, rank=rank, world_size=world_size, local_rank=local_rank)


def _parser() -> ConfigParser[RunConfig]:
    parser = ConfigParser(RunConfig, "tools/train.py", __doc__)
    parser.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        help="a named model, with tiny a whole recipe; --config and flags override it",
    )
    add_planning_flags(
        parser, "check configuration, data and layout, print the memory plan, train nothing"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
