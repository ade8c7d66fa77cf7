r"""Averages the weights of a run's last checkpoints, on CPU, a tensor at a time.

    python tools/average_checkpoints.py --run runs/pretrain --last 5 --output checkpoints/averaged
    python tools/average_checkpoints.py --checkpoints runs/a/checkpoints/iter_0000100 \
        runs/a/checkpoints/iter_0000200 --output checkpoints/averaged

The result is a checkpoint of weights, as import-hf makes one: evaluate or export it, or start a
stage from it (checkpoint.load). Sums are in float64, fp32 master weights are used where a run has
them, the layouts may differ. Checkpoints of other models, tokenizers or templates are refused.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_chimed.command_line import CommandParser
from megatron_chimed.errors import ConfigError, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Averages and prints a summary."""
    return run_command(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = CommandParser(prog="tools/average_checkpoints.py", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="a run, or a folder of checkpoints")
    source.add_argument(
        "--checkpoints", type=Path, nargs="+", metavar="DIR", help="two or more checkpoints"
    )
    parser.add_argument(
        "--last", type=int, default=5, help="with --run: how many, the newest (default: 5)"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of checkpoints, gets iter_0000000"
    )
    arguments = parser.parse_args(argv)
    if arguments.last < 2:
        raise ConfigError(f"--last is {arguments.last}: set it to 2 or more.")
    from megatron_chimed.conversion.averaging import average_checkpoints, last_checkpoints

    paths = arguments.checkpoints or last_checkpoints(arguments.run, arguments.last)
    done = average_checkpoints(paths, arguments.output)
    print(
        f"mean of {len(paths)} checkpoints, {paths[0].name} to {paths[-1].name}: {done.output}, "
        f"{done.num_tensors} tensors, {done.num_parameters:,} parameters; read back, every tensor "
        "bit-equal"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
