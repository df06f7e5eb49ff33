"""Counts of steps that were not finite, and the message of a run that they stop."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.errors import UserError
from perceptual_mae.run import checkpoint
from perceptual_mae.training.metrics import SKIPPED, Numbers, non_finite_loss

MOST_ROLLBACKS = 3
"""Times that a run goes back because of the same step; what fails at an eighth of the rate is not the rate."""

NAMED_IMAGES = 8
"""Images of a batch that a message names."""


class DivergedError(UserError):
    """Training went wrong for good at `step` (counted from 0): the message says where, and how to go on."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class Divergence:
    """Counts the steps in a row that were not finite, from the scalars that all processes agree on.

    max_skips: so many in a row are skipped. rollback_lr: factor of the learning rates each time the run goes back to a
    checkpoint; None: it does not. `lr_scale` is the product of the factors so far.
    """

    def __init__(self, max_skips: int, rollback_lr: float | None) -> None:
        self.max_skips, self.rollback_lr = max_skips, rollback_lr
        self.in_row = 0
        self.first: tuple[int, str] | None = None
        """Step and term with which the present row began."""
        self.lr_scale, self.failed_at, self.rollbacks = 1.0, -1, 0

    def observe(self, steps: Sequence[tuple[int, Numbers]]) -> tuple[list[tuple[int, str]], bool]:
        """Return the steps that were not finite, each with the first such term, and whether too many were in a row."""
        bad, is_over = [], False
        for step, scalars in steps:
            name = non_finite_loss(scalars) or ("gradient" if scalars.get(SKIPPED) else None)
            if name is None:
                self.in_row, self.first = 0, self.first if is_over else None
                continue
            bad.append((step, name))
            self.in_row += 1
            if self.in_row == 1 and not is_over:
                self.first = (step, name)
            is_over = is_over or self.in_row > self.max_skips
        return bad, is_over

    def goes_back(self, step: int) -> bool:
        """Tell whether the run goes back once more because of this step, and lower the learning rates if so."""
        if self.rollback_lr is None:
            return False
        self.rollbacks = self.rollbacks + 1 if step == self.failed_at else 1
        self.failed_at, self.in_row, self.first = step, 0, None
        if self.rollbacks > MOST_ROLLBACKS:
            return False
        self.lr_scale *= self.rollback_lr
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to count on: nothing where nothing has gone wrong yet."""
        if not self.in_row and not self.rollbacks:
            return {}
        own = {"in_row": self.in_row, "first": self.first, "lr_scale": self.lr_scale}
        return own | {"failed_at": self.failed_at, "rollbacks": self.rollbacks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned; a checkpoint of before there was one has none."""
        for name, value in state.items():
            setattr(self, name, tuple(value) if name == "first" and value else value)


def checkpoint_before(folder: Path, step: int) -> Path | None:
    """Return the newest whole checkpoint of at most so many steps, or None."""
    for path in reversed(checkpoint.checkpoints(folder)):
        if checkpoint.step_of(path) <= step and checkpoint.corruption(path) is None:
            return path
    return None


def explain(
    run: Path, name: str, step: int, last_good: int, config: RunConfig, batch: Sequence[tuple[int, int]] = ()
) -> str:
    """Return what to do after something stopped being finite in a step: where to go on from, with what changed.

    last_good: checkpoints of more steps are not to be trusted. batch: (pass, index) of the step's images, where it is
    one of training.
    """
    what, good = (
        "" if name in ("gradient", "weights") else "the loss ",
        checkpoint_before(run / "checkpoints", last_good),
    )
    optimizer = config.optimizer
    key, rate = ("base_lr", optimizer.base_lr) if optimizer.base_lr is not None else ("lr", optimizer.lr)
    changes = f"optimizer.{key}={(rate or 0) / 2:g} (or optimizer.clip_norm={0.5 * (optimizer.clip_norm or 2):g}"
    changes += ", or training.precision=no)" if config.training.precision != "no" else ")"
    if good is None:
        way = f"no checkpoint was written yet: start over with --fresh {changes}"
    else:
        start = checkpoint.step_of(good)
        way = f"the last good checkpoint is {good}: go on from it with "
        way += f"pmae pretrain {run} --from-checkpoint {start} {changes}"
    lines = [f"{run}: {what}'{name}' stopped being finite at step {step}", way]
    if batch:
        named = ", ".join(str(index) for _, index in batch[:NAMED_IMAGES])
        more = f" and {len(batch) - NAMED_IMAGES} more" if len(batch) > NAMED_IMAGES else ""
        lines.append(f"its batch is of images {named}{more}, drawn by pmae debug-batch {run} {step}")
    return "; ".join(lines)
