"""SIGTERM is a wish to stop: the step in hand is finished, saved, and all ranks end together."""

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from megatron_chimed.checkpoint.control import Control
from megatron_chimed.errors import ParallelError


class Preemption:
    """Notes SIGTERM while it is entered, on any rank; a second one ends the process as ever.

    Outside the main thread, where Python takes no signals, it notes nothing.

    Args:
        control: All ranks of the job.
    """

    def __init__(self, control: Control) -> None:
        self._control = control
        self._is_asked = False
        self._before: Any = None

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def is_due(self) -> bool:
        """Whether any rank was asked to stop, the same answer on all. Collective."""
        return any(self._control.everywhere(lambda: self._is_asked))

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_asked = True
        signal.signal(signal.SIGTERM, self._before)


def stopped_on_request(step: int, checkpoint: Path | None) -> ParallelError:
    """What ends a run that was asked to stop: an error, since it is not done."""
    return ParallelError(
        f"preempted by SIGTERM: step {step} is saved in {checkpoint}. Start the same command again "
        "to go on from there."
    )
