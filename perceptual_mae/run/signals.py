"""Stopping a run: the first signal asks it to finish its step and save, the second one leaves at once."""

import os
import signal
import sys
from types import FrameType, TracebackType

from perceptual_mae.run.lock import release_all

EXIT_CODE = 130


class Interrupted(Exception):  # noqa: N818  (not an error: the run did what it was asked to)
    """The run was asked to stop; everything is saved. The message says where to go on."""


class StopSignal:
    """Listens to SIGINT and SIGTERM while it is entered; `requested` tells whether one came."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in self._before:
            signal.signal(number, self._listen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _listen(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if sys.stderr.isatty():
                sys.stderr.write("\x1b[?25h\n")  # give the terminal back the cursor that the progress bar hid
                sys.stderr.flush()
            release_all()
            os._exit(EXIT_CODE)
        self.requested = True
