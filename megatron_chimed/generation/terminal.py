"""Terminal input of a chat, and ^C as the request to stop the current answer.

^C sends a signal if the terminal belongs to this process's session. Workers of a launcher run in
sessions of their own: there the signal reaches the launcher, which would end the job. So if this
process is not in the terminal's session, ^C is turned into an ordinary key and read as input.
"""

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from megatron_chimed.files import Closing

INTERRUPT = b"\x03"  # the byte of ^C as a key
PROMPT = "> "


class Terminal(Closing):
    """Standard input of one rank; a context manager that restores the terminal.

    On a terminal, lines can be edited and recalled with the arrow keys. They are stored nowhere:
    questions may be about patients.
    """

    def __init__(self) -> None:
        self._is_tty = sys.stdin.isatty()
        self._is_reading = self._is_stopped = False
        self._before = signal.signal(signal.SIGINT, self._on_interrupt)
        self._saved: list | None = None
        if not self._is_tty:
            return
        with contextlib.suppress(ImportError):  # then only the terminal's own line editing is left
            import readline

            readline.parse_and_bind(r'"\C-c": kill-whole-line')
        if not _gets_signals():
            self._saved = _settings(interrupt_is_key=True)

    def close(self) -> None:
        """Restores the terminal and the signal handler."""
        signal.signal(signal.SIGINT, self._before)
        if self._saved is not None:
            _restore(self._saved)
            self._saved = None

    def read(self) -> str | None:
        """The next line, "" if it was cancelled with ^C, or None at the end of input."""
        self._is_reading = True
        try:
            line = input(PROMPT if self._is_tty else "")
        except EOFError:
            self._new_line()
            return None
        except KeyboardInterrupt:
            self._new_line()
            return "" if self._is_tty else None
        finally:
            self._is_reading = False
        return "" if INTERRUPT.decode() in line else line

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """While an answer is printed, ^C requests that it stop."""
        self._is_stopped = False
        before = None if self._saved is None else _settings(line_by_line=False)
        try:
            yield
        finally:
            if before is not None:
                _restore(before)

    def is_stopped(self) -> bool:
        """Whether ^C was pressed since the answer started."""
        if self._saved is not None and select.select([sys.stdin], [], [], 0)[0]:
            self._is_stopped |= INTERRUPT in os.read(sys.stdin.fileno(), 1024)
        return self._is_stopped

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._is_reading:
            raise KeyboardInterrupt
        self._is_stopped = True

    def _new_line(self) -> None:
        if self._is_tty:
            print(flush=True)


@contextlib.contextmanager
def ignore_interrupts() -> Iterator[None]:
    """For ranks other than the one that reads: ^C may reach all processes of a terminal."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _gets_signals() -> bool:
    """Whether ^C on the terminal sends this process a signal."""
    try:
        os.tcgetpgrp(sys.stdin.fileno())
    except OSError:  # not the terminal of this session
        return False
    return True


def _settings(*, interrupt_is_key: bool = False, line_by_line: bool = True) -> list:
    """Changes the terminal's settings; returns the previous ones."""
    import termios

    before = termios.tcgetattr(sys.stdin)
    now = [*before[:6], list(before[6])]
    if interrupt_is_key:
        now[6][termios.VINTR] = b"\0"  # no key sends an interrupt
    if not line_by_line:
        now[3] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, now)
    return before


def _restore(settings: list) -> None:
    import termios

    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)
