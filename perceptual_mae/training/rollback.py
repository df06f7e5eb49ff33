"""What a run does about steps that were not finite: it skips a few, goes back to a checkpoint if asked to, or stops."""

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from perceptual_mae.evaluation.processes import as_main_process
from perceptual_mae.run import checkpoint
from perceptual_mae.run.history import add_to_history
from perceptual_mae.run.metrics_file import MetricsFile
from perceptual_mae.training import messages
from perceptual_mae.training.divergence import DivergedError, checkpoint_before, explain
from perceptual_mae.training.metrics import Meter, Numbers, are_finite

if TYPE_CHECKING:
    from perceptual_mae.training.loop import Pretraining


def check_divergence(run: "Pretraining", steps: Sequence[tuple[int, Numbers]]) -> set[int]:
    """Return which steps were skipped, with a warning; raises DivergedError where skipping is no help."""
    bad, is_over = run.divergence.observe(steps)
    if not bad:
        return set()
    if is_over or not are_finite(run.trainer.trained_parameters):
        raise diverged(run, *(run.divergence.first or bad[0]))
    run.warn(messages.skipped(bad, run.divergence.in_row, run.divergence.max_skips))
    return {step for step, _ in bad}


def diverged(run: "Pretraining", step: int, name: str) -> DivergedError:
    """Return the error of a step after which training cannot go on as it is."""
    run.writer.wait()  # the message names the checkpoints that are there
    batch = run.loader.plan.batch(run.timetable.progress(step).epoch, step % run.timetable.steps_per_epoch)
    return DivergedError(explain(run.path, name, step, step, run.config, batch), step)


def roll_back(run: "Pretraining", failure: DivergedError) -> None:
    """Go back to the last good checkpoint with lower learning rates; raises the failure where the run is not to.

    Checkpoints and records of later steps are deleted: their future is given up.
    """
    run.writer.wait()
    good = as_main_process(checkpoint_before(run.checkpoints, failure.step))
    if good is None or not run.divergence.goes_back(failure.step):
        raise failure
    state, run.meter = run.divergence.state_dict(), Meter()
    run.load(good)
    run.divergence.load_state_dict(state)
    run.trainer.lr_scale = scale = run.divergence.lr_scale
    if run.accelerator.is_main_process:
        for path in checkpoint.checkpoints(run.checkpoints):
            if checkpoint.step_of(path) > run.step:
                shutil.rmtree(path)
        run.metrics = MetricsFile(run.metrics.path, run.step)
        entry = {"failed_at": failure.step, "learning_rate_scale": scale}
        add_to_history(run.path, run.step, {"rolled_back": entry})
    run.accelerator.wait_for_everyone()
    run.warn(f"{failure}; training.rollback_lr: gone back to {good.name}, all learning rates are now x {scale:g}")
