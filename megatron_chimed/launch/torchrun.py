"""torchrun for one attempt, with three things that its own command lacks.

It ends with the exit code of the worker that failed, where `torchrun` ends with 1 whatever the
reason. It does not answer SIGTERM, on which torchrun would kill all workers 30 s later, be they
saving or not: the launcher above it decides how long they may take. And its nodes meet by
`rendezvous`, which listens on one address and un-pickles nothing.

    python -m megatron_chimed.launch.agent <torchrun's own arguments>
"""

import logging
import signal
import sys
from collections.abc import Mapping, Sequence

import torch.distributed as dist
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import (
    ChildFailedError,
    ProcessFailure,
    error_handler,
)
from torch.distributed.elastic.rendezvous import RendezvousError

from megatron_chimed.errors import ConfigError, run_command
from megatron_chimed.launch import rendezvous
from megatron_chimed.launch.limits import NOT_MET, NOT_RETRIED
from megatron_chimed.launch.processes import interrupt_with_parent


def main(argv: Sequence[str]) -> int:
    """Runs torchrun's main function in this process.

    Returns:
        0, a failed worker's exit code (128 + n for signal n), or `NOT_MET`.

    Raises:
        ConfigError: Arguments that torchrun does not take, or an endpoint that is not free.
    """
    interrupt_with_parent()
    rendezvous.register()
    # It asks for an error file of its own each time a rank has one.
    logging.getLogger(error_handler.__name__).setLevel(logging.CRITICAL)
    # A handler that does nothing: workers start with the default action, as they would not with
    # SIG_IGN, which they would inherit.
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        run.main(["--signals-to-handle", "SIGINT", *argv])
    except ChildFailedError as error:
        return worker_code(error.failures)
    except (RendezvousError, dist.DistError) as error:
        print(f"the nodes did not meet: {error.__cause__ or error}", file=sys.stderr, flush=True)
        return NOT_MET
    except SignalException:
        return 128 + signal.SIGINT
    except SystemExit as error:
        if error.code:
            raise ConfigError("torchrun refused its arguments; its message is above.") from None
    return 0


def worker_code(failures: Mapping[int, ProcessFailure]) -> int:
    """The exit code that says most: one that no restart mends, else the first.

    A worker that lost its peer may be seen to end before the peer that had a reason to.
    """
    first_to_last = sorted(failures.values(), key=lambda failure: failure.timestamp)
    codes = [failure.exitcode for failure in first_to_last]
    code = next((code for code in codes if code in NOT_RETRIED), codes[0])
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
