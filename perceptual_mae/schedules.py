"""Schedules of a run: learning rate, ramps of weights and masking ratios, phases of terms.

Progress is the share of the run's steps already taken, in [0, 1]; epochs count from 1, steps from 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch.optim import Optimizer

from discriminators.ramp import Ramp as Ramp
from discriminators.ramp import range_of as range_of
from discriminators.ramp import value_at as value_at


@dataclass(frozen=True)
class TrainingProgress:
    """Where a run stands: the epoch (from 1), the optimiser step (from 0) and the share of all steps already taken."""

    epoch: int
    step: int
    fraction: float


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


Place = Literal["decoder_input", "decoder", "last_layer"]
"""Where gradients are measured: tokens that enter the decoder, weights at both its ends, weights of its last layer."""


class Balanced(_Spec):
    """A weight that keeps a term's gradient at a share of the reconstruction's, never above `cap` (`GradientBalance`).

    In a file: `{balanced: 0.2, cap: 1.0}`, or with all that it holds
    `{balanced: 0.75, at: last_layer, anchor: reconstruction, every: 1, cap: 1.0e+4}`.
    """

    balanced: float = Field(gt=0, description="share of the anchor's gradient that the term's gradient has [none]")
    at: Place = Field(
        "decoder_input",
        description="where both gradients are taken: at the tokens that enter the decoder (decoder_input), at the "
        "weights of its embedding and last block (decoder), or of its last layer (last_layer, VQGAN) [ours]",
    )
    anchor: Literal["l1", "reconstruction"] = Field(
        "l1",
        description="what the term is balanced against, as weighted: l1, or all terms that are neither balanced nor "
        "read the discriminator (reconstruction) [ours]",
    )
    every: int = Field(8, ge=1, le=1_000_000, description="steps from one measurement to the next [ours]")
    cap: float = Field(1.0, gt=0, description="the largest weight that the balance may set [ours]")


class FromEpoch(_Spec):
    """On from this epoch; the first epoch is 1."""

    from_epoch: int = Field(
        ge=1, le=1_000_000, description="first epoch in which the term counts; epochs begin with 1 [none]"
    )


class FromShare(_Spec):
    """On once this share of the run's steps has been taken."""

    from_share: float = Field(
        ge=0, lt=1, description="share of the run's steps before the first in which the term counts [none]"
    )


class Every(_Spec):
    """On in every n-th optimiser step, the first included."""

    every: int = Field(
        ge=1, le=1_000_000, description="the term counts in every n-th optimiser step, the first included [none]"
    )


Weight = float | Ramp | Balanced
When = Literal["always", "even_epochs", "odd_epochs"] | FromEpoch | FromShare | Every


def is_active(when: When, progress: TrainingProgress) -> bool:
    """Tell whether a term with this phase is on; even epochs are 2, 4, ... (Perceptual MAE section 3.2)."""
    match when:
        case "always":
            return True
        case "even_epochs":
            return progress.epoch % 2 == 0
        case "odd_epochs":
            return progress.epoch % 2 == 1
        case FromEpoch(from_epoch=first):
            return progress.epoch >= first
        case FromShare(from_share=share):
            return progress.fraction >= share
        case Every(every=interval):
            return progress.step % interval == 0
    raise AssertionError(f"unknown phase {when!r}")


def first_share(when: When, epochs: int) -> float:
    """Return the share of a run of so many epochs after which a term with this phase is on for the first time."""
    match when:
        case "even_epochs":
            return 1 / epochs
        case FromEpoch(from_epoch=first):
            return (first - 1) / epochs
        case FromShare(from_share=share):
            return share
    return 0.0


def learning_rate(step: int, *, peak: float, floor: float, warmup_steps: int, total_steps: int) -> float:
    """Return the learning rate of a step: linear from 0 over the warm-up, then half a cosine down to `floor` (MAE)."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


@dataclass(frozen=True)
class Timetable:
    """Steps of a run and the learning rates along them."""

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int

    def progress(self, step: int) -> TrainingProgress:
        return TrainingProgress(step // self.steps_per_epoch + 1, step, step / self.total_steps)

    def rate(self, peak: float, floor: float) -> Callable[[int], float]:
        return partial(
            learning_rate, peak=peak, floor=floor, warmup_steps=self.warmup_steps, total_steps=self.total_steps
        )


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    """Set the rate of every group, times the group's `lr_scale` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = value * group.get("lr_scale", 1.0)
