"""Whether to save, and whether to stop, after a step: all processes decide alike, though one of them is asked."""

import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from accelerate import Accelerator

from perceptual_mae.data.workers import NoSharedMemoryError
from perceptual_mae.errors import LostProcessError, UserError
from perceptual_mae.evaluation.processes import most_urgent
from perceptual_mae.run import checkpoint
from perceptual_mae.run.signals import StopSignal
from perceptual_mae.training import messages, rollback, trainer_state
from perceptual_mae.training.metrics import are_finite

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


def save_run(run: "Pretraining") -> None:
    """Begin to write a run's checkpoint; those that need not be kept are deleted once it is whole.

    Raises DivergedError for spoiled weights, and what kept the checkpoint before from being written.
    """
    pending = run.meter.peek(run.accelerator)
    if not are_finite(run.trainer.trained_parameters):
        raise rollback.diverged(run, run.step - 1, "weights")
    if run.accelerator.is_main_process:
        run.writer.wait()
        run.lock.check()
        run.metrics.flush_to_disk()
        tensors, metadata = trainer_state.state_dict(run.trainer, run.accelerator)
        metadata |= {"step": run.step, "images_seen": run.images_seen, "training_images": len(run.train_data)}
        metadata |= {"training_images_sha256": run.images_sha256} if run.images_sha256 else {}
        metadata |= {"unreadable_sizes": sizes} if (sizes := run.unreadable.sizes()) else {}
        metadata |= {"alarms": run.monitor.state_dict(), "losses": run.last_losses}
        metadata |= {"divergence": state} if (state := run.divergence.state_dict()) else {}
        metadata |= {"pending": pending} if pending else {}
        training = run.config.training
        keep_steps = training.keep_every * run.timetable.steps_per_epoch if training.keep_every else None
        prune = partial(checkpoint.prune, run.checkpoints, run.step, training.keep_last, keep_steps)
        run.writer.write(run.checkpoints, run.step, tensors, metadata, prune)
        run.save_points.saved()
    run.accelerator.wait_for_everyone()


def saved_error(run: "Pretraining", failure: Exception) -> LostProcessError | UserError:
    """Save a run that cannot read its images, for workers died or too many are unreadable; return how it ends.

    One of several processes cannot save: the others are in the middle of their next step.
    """
    if run.accelerator.num_processes == 1:
        run.save()
        run.writer.wait()
    if isinstance(failure, LostProcessError):
        return LostProcessError(messages.lost_worker(run.path, str(failure)))
    if isinstance(failure, NoSharedMemoryError):
        return failure
    return UserError(messages.too_many_unreadable(run.path, str(failure)))
