"""The agent: torchrun for one attempt, with three things that its own command lacks.

It exits with the code of the worker that failed, where `torchrun` exits with 1 whatever the reason.
It ignores SIGTERM, on which torchrun would kill all workers after 30 s even while they save: the
launcher above it decides how long they may take. And its nodes meet through `rendezvous`, which
listens on one address and unpickles nothing.

    python -m megatron_chimed.launch.torchrun LAUNCHER_PID <torchrun's own arguments>

It is interrupted when process LAUNCHER_PID, its parent, dies.
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
from megatron_chimed.launch.limits import NO_RENDEZVOUS, NOT_RETRIED
from megatron_chimed.launch.process_tree import interrupt_when_parent_dies


def main(argv: Sequence[str]) -> int:
    """Runs torchrun's main function in this process.

    Returns:
        0, a failed worker's exit code (128 + n for signal n), or `NO_RENDEZVOUS`.

    Raises:
        ConfigError: torchrun refuses its arguments, or the endpoint is not free.
        InterruptError: The launcher died while this process started.
    """
    launcher, *words = argv
    interrupt_when_parent_dies(int(launcher))
    rendezvous.register()
    # It asks for an error file of its own each time a rank has one.
    logging.getLogger(error_handler.__name__).setLevel(logging.CRITICAL)
    # A handler that does nothing: unlike SIG_IGN, it is not inherited by the workers.
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        run.main(["--signals-to-handle", "SIGINT", *words])
    except ChildFailedError as error:
        return worker_code(error.failures)
    except (RendezvousError, dist.DistError) as error:
        print(f"rendezvous failed: {error.__cause__ or error}", file=sys.stderr, flush=True)
        return NO_RENDEZVOUS
    except SignalException:
        return 128 + signal.SIGINT
    except SystemExit as error:
        if error.code:
            raise ConfigError("torchrun refused its arguments; its message is above.") from None
    return 0


def worker_code(failures: Mapping[int, ProcessFailure]) -> int:
    """The most telling exit code: one that no restart fixes, else that of the first failure.

    A worker that lost its peer may be seen to end before the peer that failed for a reason.
    """
    first_to_last = sorted(failures.values(), key=lambda failure: failure.timestamp)
    codes = [failure.exitcode for failure in first_to_last]
    code = next((code for code in codes if code in NOT_RETRIED), codes[0])
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
