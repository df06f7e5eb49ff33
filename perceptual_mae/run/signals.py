"""Stopping a run: the first signal asks it to finish its step and save, a second Ctrl-C ends it at once."""

import os
import signal
import sys
from types import FrameType, TracebackType

from perceptual_mae.run.lock import release_all

EXIT_CODE = 130

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""Those that ask a run to stop: Ctrl-C, a batch system's end, a terminal that closes, a batch system's warning."""

AT_ONCE = (signal.SIGINT, signal.SIGTERM)
"""Those that end a run at once when it was asked to stop before; the others come twice by themselves."""


class Interrupted(Exception):  # noqa: N818  (not an error: the run did what it was asked to)
    """The run was asked to stop; everything is saved. The message says where to go on."""


class StopSignal:
    """Listens to the signals that ask a run to stop while it is entered; `number` is the first that came, or 0.

    While `is_deferred` is false a signal raises KeyboardInterrupt, whichever it is: there is nothing to save yet. A
    hangup that was ignored before (nohup) is ignored still.
    """

    def __init__(self, *, is_deferred: bool = True) -> None:
        self.number = 0
        self.is_deferred = is_deferred

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.number != 0

    def __enter__(self) -> "StopSignal":
        before = {number: signal.getsignal(number) for number in SIGNALS}
        ignored = {number for number, handler in before.items() if handler == signal.SIG_IGN}
        self._before = {number: before[number] for number in SIGNALS if number in AT_ONCE or number not in ignored}
        for number in self._before:
            signal.signal(number, self._listen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _listen(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number in AT_ONCE:
            if sys.stderr.isatty():
                sys.stderr.write("\x1b[?25h\n")  # give the terminal back the cursor that the progress bar hid
                sys.stderr.flush()
            release_all()
            os._exit(EXIT_CODE)
        self.number = self.number or number
        if not self.is_deferred:
            raise KeyboardInterrupt
