"""Whether to save, and whether to stop, after a step: all processes decide alike, though one of them is asked."""

import time
from typing import TYPE_CHECKING, NamedTuple

from accelerate import Accelerator

from perceptual_mae.data.workers import NoSharedMemoryError
from perceptual_mae.errors import LostProcessError, UserError
from perceptual_mae.evaluation.processes import most_urgent
from perceptual_mae.run.signals import StopSignal
from perceptual_mae.training import messages

if TYPE_CHECKING:
    from perceptual_mae.training.loop import Pretraining

REFUSED, SIGNALLED = 2, 3
"""Requests of a process: 1 asks to save, `REFUSED` to end, `SIGNALLED` times the number of a signal to stop."""


class SavePoint(NamedTuple):
    """What is due after a step.

    stop: the number of the signal that asks the run to stop, 0: none. refused: too many images could not be read. Both
    save, too.
    """

    stop: int = 0
    save: bool = False
    refused: bool = False


class SavePoints:
    """Decides after each step. minutes: between two checkpoints, by the main process's clock; None or 0: no matter."""

    def __init__(self, accelerator: Accelerator, signal: StopSignal, minutes: float | None) -> None:
        self.accelerator, self.signal = accelerator, signal
        self.seconds = 60 * minutes if minutes else None
        self.saved()

    def saved(self) -> None:
        """Count the minutes from now on."""
        self._since = time.monotonic()

    def after(self, step: int, *, is_last: bool, refused: bool = False) -> SavePoint:
        """Return what is due after so many steps; `is_last`: of an epoch. Every process must ask after every step.

        refused: this process could not read too many images.
        """
        is_due = self.seconds is not None and time.monotonic() - self._since >= self.seconds
        own = SIGNALLED * self.signal.number or (
            REFUSED if refused else int(is_due and self.accelerator.is_main_process)
        )
        request = most_urgent(own, self.accelerator, step, always=is_last)
        return SavePoint(request // SIGNALLED, request > 0, request == REFUSED)


def saved_error(run: "Pretraining", failure: Exception) -> LostProcessError | UserError:
    """Save a run that cannot read its images, for workers died or too many are unreadable; return how it ends.

    One of several processes cannot save: the others are in the middle of their next step.
    """
    if run.accelerator.num_processes == 1:
        run.save()
    if isinstance(failure, LostProcessError):
        return LostProcessError(messages.lost_worker(run.path, str(failure)))
    if isinstance(failure, NoSharedMemoryError):
        return failure
    return UserError(messages.too_many_unreadable(run.path, str(failure)))
