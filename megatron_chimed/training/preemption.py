"""Ctrl-C and SIGTERM are wishes to stop: the step in hand is finished, saved, all ranks end.

What ranks get: in a terminal, one process gets SIGINT. torchrun gives each rank a session of its
own, so there the terminal's SIGINT reaches torchrun alone. It sends one SIGINT to each rank, waits
30 s (`--shutdown-timeout`), and kills; after a second Ctrl-C it sends SIGTERM. A scheduler sends
SIGTERM, often to ranks and launcher alike, which passes it on: so a rank may get it twice.
"""

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType, TracebackType

from megatron_chimed.checkpoint.commit import committed
from megatron_chimed.engine.agreement import Agreement
from megatron_chimed.errors import ChimedError, InterruptError, ParallelError, is_first_to_report

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_SHOW_CURSOR = b"\x1b[?25h"


class Preemption:
    """Notes Ctrl-C and SIGTERM on any rank while it is entered; whoever asks for them acts.

    A second Ctrl-C, or SIGTERM after Ctrl-C, ends the process at once, be it in the middle of a
    collective; it says what is on disk. SIGTERM after SIGTERM changes nothing.

    Outside the main thread, where Python takes no signals, it notes nothing.

    Args:
        agreement: All ranks of the job.
        folder: Where the run keeps its checkpoints.
    """

    def __init__(self, agreement: Agreement, folder: Path) -> None:
        self._agreement, self._folder = agreement, folder
        self._number: int | None = None
        self._held = contextlib.ExitStack()

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            self._watch()
            for number in SIGNALS:
                self._held.callback(signal.signal, number, signal.signal(number, self._note))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.close()

    def asked(self) -> int | None:
        """The signal that asked any rank to stop, the same on all; None: none did. Collective."""
        numbers = set(self._agreement.on_all_ranks(lambda: self._number)) - {None}
        return min(numbers, default=None)  # Ctrl-C, where one rank got this and one that

    def is_asked(self) -> bool:
        """Whether any rank was asked to stop. Collective."""
        return self.asked() is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._number = self._number or number

    def _watch(self) -> None:
        """Starts a thread that sees signals come.

        A handler in Python runs when the main thread is back in Python: it may wait for a peer in
        C++ for minutes. What Python's handler in C writes to this pipe is there at once.
        """
        source, sink = os.pipe()
        os.set_blocking(sink, False)
        thread = threading.Thread(target=self._react, args=(source,), daemon=True)
        before = signal.set_wakeup_fd(sink)
        thread.start()

        def end() -> None:
            signal.set_wakeup_fd(before)
            os.write(sink, b"\0")
            thread.join()
            os.close(sink)
            os.close(source)

        self._held.callback(end)

    def _react(self, source: int) -> None:
        seen: list[int] = []
        while number := os.read(source, 1)[0]:
            if number not in SIGNALS:
                continue
            if not seen:
                _say(
                    f"{_NAMES[number]}: the step in hand is finished and saved, then all ranks "
                    f"end. Ctrl-C (again) quits at once.{_patience(number)}"
                )
            elif signal.SIGINT in (number, *seen):
                self._quit()
            seen.append(number)

    def _quit(self) -> None:
        newest = next(iter(committed(self._folder)), None)
        if newest is None:
            kept = f"nothing was saved in {self._folder}"
        else:
            kept = f"on disk is {newest}, and the same command goes on from there"
        _say(f"quit at once: the step in hand is lost; {kept}.")
        os._exit(InterruptError.exit_code)


def stopped_on_request(
    number: int, step: int, checkpoint: Path | None, left: str = ""
) -> ChimedError:
    """What ends a command that was asked to stop: an error, since it is not done.

    Args:
        number: The signal.
        step: Steps done.
        checkpoint: Where they are saved; None: there was no step to save.
        left: What of the last step was cut short; empty: nothing.
    """
    by_hand = number == signal.SIGINT
    how = "stopped by Ctrl-C" if by_hand else "preempted by SIGTERM"
    if checkpoint is None:
        what = "before the first step, so there is nothing to save. Start the same command again."
    else:
        what = f"step {step} is saved in {checkpoint}. Start the same command again to go on from "
        what += "there."
    if left:
        what += f" {left.capitalize()} was cut short and is done first then."
    return (InterruptError if by_hand else ParallelError)(f"{how}: {what}")


def _patience(number: int) -> str:
    # Where tools/launch.py passes a signal on, it is SIGTERM.
    if number == signal.SIGINT and "TORCHELASTIC_RUN_ID" in os.environ:
        return " torchrun kills ranks that take more than 30 s (its --shutdown-timeout)."
    return ""


def _say(text: str) -> None:
    """Prints on one rank of the node, past all buffers: their locks may be held by who waits."""
    if sys.__stdout__ is not None and sys.__stdout__.isatty():
        os.write(1, _SHOW_CURSOR)  # a live line hides it
    if is_first_to_report(text):
        os.write(2, f"\n{text}\n".encode())
