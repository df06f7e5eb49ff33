"""Whether to save, and whether to stop, after a step: all processes decide alike, though one of them is asked."""

import time
from typing import NamedTuple

from accelerate import Accelerator

from perceptual_mae.evaluation.processes import most_urgent
from perceptual_mae.run.signals import StopSignal


class SavePoint(NamedTuple):
    """What is due after a step. stop: the number of the signal that asks the run to stop, 0: none; it saves, too."""

    stop: int = 0
    save: bool = False


class SavePoints:
    """Decides after each step. minutes: between two checkpoints, by the main process's clock; None or 0: no matter."""

    def __init__(self, accelerator: Accelerator, signal: StopSignal, minutes: float | None) -> None:
        self.accelerator, self.signal = accelerator, signal
        self.seconds = 60 * minutes if minutes else None
        self.saved()

    def saved(self) -> None:
        """Count the minutes from now on."""
        self._since = time.monotonic()

    def after(self, step: int, *, is_last: bool) -> SavePoint:
        """Return what is due after so many steps; `is_last`: of an epoch. Every process must ask after every step."""
        is_due = self.seconds is not None and time.monotonic() - self._since >= self.seconds
        own = 2 * self.signal.number or int(is_due and self.accelerator.is_main_process)
        request = most_urgent(own, self.accelerator, step, always=is_last)
        return SavePoint(request // 2, request > 0)
