"""Cost of a training step: configurations measured in turns, in one process, on random images of their size.

In turns, because a machine's speed wanders: what counts is the ratio of two configurations within a round.
"""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest

import numpy as np
import torch

from perceptual_mae.benchmark.flops_memory import StepCounts, count_step
from perceptual_mae.benchmark.profiler import Clock, Stopwatch, clock_of, timed_parts
from perceptual_mae.benchmark.step_kinds import StepKind, step_kinds
from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.data.batch import Batch
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.open_run import make_accelerator
from perceptual_mae.progress import OnProgress, no_progress
from perceptual_mae.schedules import Timetable, TrainingProgress
from perceptual_mae.seeding import stream
from perceptual_mae.training.build import build_trainer
from perceptual_mae.training.messages import is_out_of_memory
from perceptual_mae.training.trainer import Trainer

HELD_P = 0.3
"""Augmentation that adapts starts at probability 0, where it costs nothing; it is measured at this one instead."""

Parts = dict[str, float]


@dataclass(frozen=True)
class Quartiles:
    """The median of the rounds' values, between the lower and the upper quartile."""

    median: float
    lower: float
    upper: float


@dataclass
class Candidate:
    """A configuration on the bench; `counts` and each round's `seconds` go by the labels of the kinds of step."""

    name: str
    config: RunConfig
    trainer: Trainer
    batches: list[Batch]
    kinds: list[StepKind]
    augment_p: float | None = None
    counts: dict[str, StepCounts] = field(default_factory=dict)
    seconds: list[dict[str, Parts]] = field(default_factory=list)

    @property
    def batch_size(self) -> int:
        return self.config.training.batch_size

    def step(self, progress: TrainingProgress) -> None:
        """Take one step, with the augmentation at the probability it is held at."""
        if self.augment_p is not None and self.trainer.adversary is not None:
            augmentation = self.trainer.adversary.augmentation
            assert augmentation is not None
            assert augmentation.controller is not None
            augmentation.controller.p = self.augment_p
        self.trainer.step(self.batches, progress)

    def mean_of(self, values: Mapping[str, float]) -> float:
        """Return the mean over a run's steps of what each kind of step has, by its label."""
        return sum(kind.weight * values[kind.label] for kind in self.kinds)

    def mean_seconds(self) -> list[float]:
        """Return a mean step's seconds in each round."""
        return [self.mean_of({label: sum(parts.values()) for label, parts in kinds.items()}) for kinds in self.seconds]

    def part_shares(self) -> Parts:
        """Return the share of each part in the time of a mean step, all rounds taken together, the largest first."""
        totals: Parts = {}
        for kinds in self.seconds:
            for name in {name for parts in kinds.values() for name in parts}:
                of_kinds = {label: parts.get(name, 0.0) for label, parts in kinds.items()}
                totals[name] = totals.get(name, 0.0) + self.mean_of(of_kinds)
        whole = sum(totals.values()) or 1.0
        return {name: total / whole for name, total in sorted(totals.items(), key=lambda item: -item[1])}


def measure(
    configs: Sequence[tuple[str, RunConfig]],
    *,
    rounds: int = 10,
    warmup: int = 1,
    threads: int = 1,
    on_progress: OnProgress = no_progress,
) -> tuple[list[Candidate], Clock]:
    """Return the configurations, measured and counted, and the clock they were measured by.

    In every round each configuration takes one step of each of its kinds, side by side; the order is reversed from
    round to round. `warmup` rounds before do not count. `threads` are those of a CPU. Raises UserError where memory or
    processes do not suffice.
    """
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        candidates = [enter(name, config) for name, config in configs]
        clock = clock_of(candidates[0].trainer.accelerator.device)
        run_rounds(candidates, clock, rounds, warmup, on_progress)
    except (MemoryError, RuntimeError) as failure:
        if not is_out_of_memory(failure):
            raise
        raise UserError("out of memory: give a smaller --batch-size, or fewer configurations at once") from failure
    finally:
        torch.set_num_threads(threads_before)
    return candidates, clock


def enter(name: str, config: RunConfig) -> Candidate:
    """Build a configuration's trainer, at its full learning rate, and batches of random images."""
    accelerator = make_accelerator(config, training=True)
    if accelerator.num_processes > 1:
        raise UserError("bench measures one process; start it without a launcher")
    trainer = build_trainer(config, accelerator, Timetable(2**30, 2**40, 0))
    augmentation = trainer.adversary.augmentation if trainer.adversary is not None else None
    controller, held = augmentation.controller if augmentation is not None else None, None
    if controller is not None:
        held = HELD_P if controller.target is not None and controller.p == 0 else controller.p
    batches = random_batches(config)
    if accelerator.device.type == "cuda":
        batches = [batch.pin_memory() for batch in batches]  # as the loader does
    return Candidate(name, config, trainer, batches, step_kinds(trainer), held)


def random_batches(config: RunConfig) -> list[Batch]:
    """Return the micro-batches of one step: seeded noise of the configuration's size, the same for all of that size."""
    training = config.training
    shape = (len(config.data.mean), *config.data.size)
    size = training.batch_size // training.accumulation
    generator, batches = stream("bench", training.seed), []
    for first in range(0, training.batch_size, size):
        images = torch.randint(0, 256, (size, *shape), generator=generator, dtype=torch.uint8)
        indices = torch.arange(first, first + size)
        batches.append(Batch(images, torch.full((size,), -1), indices, torch.ones_like(indices)))
    return batches


def run_rounds(
    candidates: Sequence[Candidate], clock: Clock, rounds: int, warmup: int, on_progress: OnProgress
) -> None:
    """Warm all candidates up, count each kind of step once, then measure."""
    tasks = [
        task
        for tasks in zip_longest(*([(candidate, kind) for kind in candidate.kinds] for candidate in candidates))
        for task in tasks
        if task is not None
    ]
    numbers = range(warmup + 1 + rounds)
    done, total = 0, len(tasks) * len(numbers)
    for number in numbers:
        if number > warmup:
            for candidate in candidates:
                candidate.seconds.append({})
        for candidate, kind in tasks if number % 2 else reversed(tasks):
            step = partial(candidate.step, kind.progress(number))
            if number < warmup:
                step()
            elif number == warmup:
                candidate.counts[kind.label] = count_step(candidate.trainer, candidate.batch_size, step)
            else:
                stopwatch = Stopwatch(clock)
                with timed_parts(candidate.trainer, stopwatch), without_collecting():
                    candidate.seconds[-1][kind.label] = stopwatch.time(step)
            done += 1
            on_progress("bench", done, total)


@contextmanager
def without_collecting() -> Iterator[None]:
    """Keep Python's collector of garbage from running within a measurement."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def ratios(candidate: Candidate, reference: Candidate) -> Quartiles:
    """Return how many times the reference's time an image takes, from the ratios within each round."""
    pairs = zip(candidate.mean_seconds(), reference.mean_seconds(), strict=True)
    scale = reference.batch_size / candidate.batch_size
    return quartiles([own / other * scale for own, other in pairs])


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the median and the quartiles of at least one value."""
    lower, median, upper = (float(value) for value in np.quantile(values, [0.25, 0.5, 0.75]))
    return Quartiles(median, lower, upper)
