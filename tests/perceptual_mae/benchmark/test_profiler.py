"""The stopwatch gives each instant to the innermost part; watching a step changes nothing of it."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch

from conftest import debug_trainer, random_batches
from perceptual_mae.benchmark.profiler import REST, Clock, Stopwatch, clock_of, timed_parts
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training.trainer import Trainer


def fake_clock(times: Iterator[float]) -> Clock:
    """A clock that reads the given times off, one a mark."""
    return Clock("fake", lambda: next(times), lambda start, end: end - start)


def test_time_goes_to_the_innermost_part() -> None:
    # rest 0-1, outer 1-3, inner 3-8, outer 8-10, rest 10-20, inner 20-24, rest 24-25
    stopwatch = Stopwatch(fake_clock(iter([0.0, 1.0, 3.0, 8.0, 10.0, 20.0, 24.0, 25.0])))
    inner = stopwatch.around("inner", lambda: None)
    outer = stopwatch.around("outer", inner)

    def step() -> None:
        outer()
        inner()

    assert stopwatch.time(step) == {REST: 1 + 10 + 1, "outer": 2 + 2, "inner": 5 + 4}


def test_a_part_that_fails_is_left_too() -> None:
    stopwatch = Stopwatch(fake_clock(iter(range(100))))

    def fail() -> None:
        raise RuntimeError

    def step() -> None:
        with pytest.raises(RuntimeError):
            stopwatch.around("failing", fail)()

    assert stopwatch.time(step) == {REST: 2, "failing": 1}


def test_marks_are_settled_before_they_are_compared() -> None:
    settled: list[bool] = []

    def between(start: int, end: int) -> float:
        assert settled
        return float(end - start)

    ticks = count()
    clock = Clock("late", lambda: next(ticks), between, settle=lambda: settled.append(True))
    assert Stopwatch(clock).time(lambda: None) == {REST: 1}


def test_a_cpu_is_measured_by_the_time_of_this_process() -> None:
    clock = clock_of(torch.device("cpu"))
    start = clock.mark()
    while clock.between(start, clock.mark()) <= 0:
        torch.ones(1000).sum()
    assert clock.name == "process CPU time"


PARTS = {
    "mse": {"generator", "backward", "backward generator", "optimizers", "term mse", REST},
    "ls_gan_p": {
        *("generator", "discriminator", "optimizers", REST),
        *("backward", "backward generator", "backward discriminator"),
        *("term l1", "term feature_matching", "term style", "term adversarial", "term discriminator"),
    },
}
PARTS["stylegan2_ada_p"] = PARTS["ls_gan_p"] | {"augmentation", "backward augmentation"}
PARTS["official_code"] = PARTS["ls_gan_p"] | {"loss networks", "backward loss networks"}


@pytest.mark.parametrize("order", ["lean", "sequential"])
@pytest.mark.parametrize("method", PARTS)
def test_every_part_of_a_step_is_seen_in_either_order(method: str, order: str) -> None:
    trainer = debug_trainer(method, f"training.order={order}")
    stopwatch = Stopwatch(fake_clock(iter(range(10_000))))
    with timed_parts(trainer, stopwatch):
        parts = stopwatch.time(lambda: trainer.step(random_batches(4), TrainingProgress(2, 16, 0.5)))
    assert set(parts) == PARTS[method]


class Takes(torch.autograd.Function):
    """The identity, whose backward pass takes some time of a clock that stands still otherwise."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, clock: list[float], seconds: float) -> torch.Tensor:
        ctx.clock, ctx.seconds = clock, seconds
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        ctx.clock[0] += ctx.seconds
        return gradient, None, None


@pytest.mark.parametrize(("order", "discriminator_passes"), [("lean", 3), ("sequential", 3)])
def test_backward_passes_are_told_apart_by_the_network_they_go_through(order: str, discriminator_passes: int) -> None:
    trainer, clock = debug_trainer("ls_gan_p", f"training.order={order}", "losses.adversarial.weight=0.1"), [0.0]
    seconds = {"generator": 5.0, "discriminator": 3.0, "terms": 7.0}

    def slowed(place: str) -> Any:
        return lambda module, arguments, result: Takes.apply(result, clock, seconds[place])

    trainer.unwrapped_generator.decoder.pred.register_forward_hook(slowed("generator"))
    trainer.unwrapped_discriminator.stages[0].register_forward_hook(slowed("discriminator"))
    line = trainer.objective.lines["l1"]
    function = line.term.function
    term = replace(line.term, function=lambda *a, **k: Takes.apply(function(*a, **k), clock, seconds["terms"]))
    trainer.objective.lines["l1"] = replace(line, term=term)
    stopwatch = Stopwatch(Clock("virtual", lambda: clock[0], lambda start, end: end - start))
    with timed_parts(trainer, stopwatch):
        parts = stopwatch.time(lambda: trainer.step(random_batches(4), TrainingProgress(2, 9, 0.5)))
    assert {name: time for name, time in parts.items() if time} == {
        "backward generator": 5.0,
        "backward discriminator": 3.0 * discriminator_passes,  # real and fake for its own update, fake for the other
        "backward": 7.0,
    }


def attributes(trainer: Trainer) -> dict[str, Any]:
    """What watching touches, as it is found on the objects themselves; not what every step sets anew."""
    owners = {"trainer": trainer, "accelerator": trainer.accelerator, "objective": trainer.objective}
    owners |= {"optimizer": trainer.optimizer, "augmentation": trainer.adversary.augmentation}
    held = {f"{name}.{key}": id(value) for name, owner in owners.items() for key, value in vars(owner).items()}
    held = {name: value for name, value in held.items() if name not in ("trainer.skipped", "trainer.step_losses")}
    hooks = [len(network._forward_hooks) for network in (trainer.unwrapped_generator, trainer.unwrapped_discriminator)]
    return held | {"backward": torch.autograd.backward, "grad": torch.autograd.grad, "hooks": hooks}


def test_watching_changes_neither_the_step_nor_the_trainer() -> None:
    def step(trainer: Trainer) -> dict[str, torch.Tensor]:
        return trainer.step(random_batches(4), TrainingProgress(2, 16, 0.5))

    plain, seen = (debug_trainer("stylegan2_ada_p", "augment.initial_p=0.5") for _ in range(2))
    before, stopwatch, reported = attributes(seen), Stopwatch(fake_clock(iter(range(10_000)))), []
    with timed_parts(seen, stopwatch):
        stopwatch.time(lambda: reported.append(step(seen)))
    assert attributes(seen) == before
    expected = step(plain)
    assert reported[0].keys() == expected.keys()
    assert all(torch.equal(reported[0][name], value) for name, value in expected.items())
    weights = zip(plain.unwrapped_generator.parameters(), seen.unwrapped_generator.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)
