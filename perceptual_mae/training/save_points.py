"""Whether to save, and whether to stop, after a step: all processes decide alike, though one of them is asked."""

import time
from typing import NamedTuple

import torch
from accelerate import Accelerator

from perceptual_mae.training.signals import StopSignal

AGREE_EVERY = 10
"""Steps between which several processes on GPUs agree, for asking waits for the device."""


class SavePoint(NamedTuple):
    """What is due after a step. stop: the number of the signal that asks the run to stop, 0 for none."""

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
        several, on_host = self.accelerator.num_processes > 1, self.accelerator.device.type == "cpu"
        if several and not on_host and step % AGREE_EVERY and not is_last:  # on the CPU a step is long, asking is not
            return SavePoint()
        is_due = self.seconds is not None and time.monotonic() - self._since >= self.seconds
        own = [self.signal.number, int(is_due and self.accelerator.is_main_process)]
        if not several:
            return SavePoint(own[0], bool(own[1]))
        everybodys = self.accelerator.gather(torch.tensor([own], device=self.accelerator.device))
        stop, save = everybodys.amax(0).tolist()
        return SavePoint(int(stop), bool(save))
