"""The kinds of step that a run consists of, and the weights with which a few of them make a mean step.

A step's work depends on its epoch (even ones have more terms) and on its number: R1, path length, the balance, the
telemetry, terms that are on every n steps, a discriminator that learns in every n-th. What comes on top is taken to
cost the same whatever else is on: then a step with and a step without each of them are enough. Epochs count from 1,
steps from 0.
"""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from perceptual_mae.objective.gradient_balance import TELEMETRY_GRID
from perceptual_mae.schedules import Every, FromEpoch, TrainingProgress
from perceptual_mae.training.trainer import Trainer

MOST_STEPS = 2**13
"""How many steps are looked at where intervals without a common measure would repeat only after many more."""

Work = frozenset[str]


@dataclass(frozen=True)
class StepKind:
    """Steps that do the same work. One is in epoch `epoch`, at number `first` and every `period` from there.

    `weight` is what its cost counts for in that of the mean step.
    """

    label: str
    weight: float
    epoch: int
    first: int
    period: int

    def progress(self, number: int) -> TrainingProgress:
        """Return the `number`-th step of this kind, with ramps at their end."""
        return TrainingProgress(self.epoch, self.first + number * self.period, 1.0)


def step_kinds(trainer: Trainer) -> list[StepKind]:
    """List as few kinds as the mean step over an odd and an even epoch can be computed from; their weights add up to 1.

    Every term has its turn in these epochs. The label names the parity and what comes on top: "even + r1 + balance".
    """
    lines = trainer.objective.lines.values()
    first_epoch = max((line.when.from_epoch for line in lines if isinstance(line.when, FromEpoch)), default=1) | 1
    period = math.lcm(*intervals(trainer))
    moments: dict[Work, TrainingProgress] = {}
    counts: Counter[Work] = Counter()
    for epoch in (first_epoch, first_epoch + 1):
        for step in range(min(period, MOST_STEPS)):
            work = work_at(trainer, TrainingProgress(epoch, step, 1.0))
            moments.setdefault(work, TrainingProgress(epoch, step, 1.0))
            counts[work] += 1
    shares = {work: count / counts.total() for work, count in counts.most_common()}
    weights = mean_weights(shares)
    return [
        StepKind(label(work), weight, moments[work].epoch, moments[work].step, period)
        for work, weight in weights.items()
    ]


def mean_weights(shares: dict[Work, float]) -> dict[Work, float]:
    """Return what the costs of as few kinds as possible, the commonest, count for in the mean cost of all.

    shares: of all kinds, by their work. A kind's cost is the sum over its work of costs that need not be known: kinds
    whose work is a combination of others' (one with a and b: one with a, plus one with b, less one with neither) are
    left out, and their shares go to those others.
    """
    names = sorted(set().union(*shares))
    rows = {work: np.array([float(name in work) for name in names]) for work in shares}
    chosen: list[Work] = []
    for work in sorted(shares, key=lambda work: -shares[work]):
        if np.linalg.matrix_rank(np.stack([rows[other] for other in (*chosen, work)])) > len(chosen):
            chosen.append(work)
    mean = sum((share * rows[work] for work, share in shares.items()), np.zeros(len(names)))
    weights = np.linalg.lstsq(np.stack([rows[work] for work in chosen]).T, mean, rcond=None)[0]
    return {work: float(weight) for work, weight in zip(chosen, weights, strict=True) if abs(weight) > 1e-9}


def work_at(trainer: Trainer, progress: TrainingProgress) -> Work:
    """Name the parity of a step's epoch and the work that not all steps of the epoch do."""
    adversary, objective = trainer.adversary, trainer.objective
    parity = "even" if progress.epoch % 2 == 0 else "odd"
    # What belongs to the objective costs more where there are more terms: it is kept apart by parity.
    active, balance = objective.active(progress), objective.balance
    ours = [name for name in active if isinstance(objective.lines[name].when, Every)]
    if balance.is_due(progress.step):
        ours += ["balance"] * bool(balance.balanced_terms(active, progress.step))
        ours += ["telemetry"] * bool(balance.telemetry_terms(active, progress.step))
    due: list[str] = []
    if adversary is not None:
        due += adversary.due(progress.step)
        path_length, every = adversary.path_length, adversary.every
        due += ["path_length"] * bool(path_length is not None and path_length.is_due(progress.step))
        ours += ["discriminator"] * (every > 1 and progress.step % every == 0)
    return frozenset([parity, *due, *(f"{parity} {name}" for name in ours)])


def label(work: Work) -> str:
    """Return the parity of a kind's epoch and what comes on top."""
    parity = next(name for name in ("odd", "even") if name in work)
    return " + ".join([parity, *sorted(name.removeprefix(f"{parity} ") for name in work - {parity})])


def intervals(trainer: Trainer) -> list[int]:
    """List how many steps pass between two of the same, for everything that is not done in every step."""
    adversary, objective = trainer.adversary, trainer.objective
    balance = objective.balance
    intervals = [TELEMETRY_GRID, balance.telemetry_every, *(weight.every for weight in balance.balanced.values())]
    intervals += [line.when.every for line in objective.lines.values() if isinstance(line.when, Every)]
    if adversary is not None:
        own, path_length = (adversary.r1, adversary.r2), adversary.path_length
        intervals += [adversary.every * penalty.every for penalty in own if penalty is not None]
        intervals += [adversary.every, *([path_length.every] if path_length is not None else [])]
    return intervals
