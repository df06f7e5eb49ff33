"""Time of a step by its parts: a stopwatch with a stack, and a trainer's own attributes wrapped by it.

Nothing here knows in which order a step does its work; only calls are timed.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import nn

from perceptual_mae.training.trainer import Trainer

Result = TypeVar("Result")

REST = "rest"
"""What no other part accounts for: data to the device, masks, pooling, the discriminator's loss, scalars."""


@dataclass(frozen=True)
class Clock:
    """A device's clock: `mark` an instant, `settle` the marks, then ask for the seconds `between` two."""

    name: str
    mark: Callable[[], Any]
    between: Callable[[Any, Any], float]
    settle: Callable[[], None] = lambda: None


def clock_of(device: torch.device) -> Clock:
    """Return the process's CPU time on a CPU (other jobs do not count), events on CUDA, awaited wall time elsewhere."""
    if device.type == "cpu":
        return Clock("process CPU time", time.process_time, lambda start, end: float(end - start))
    if device.type == "cuda":
        return Clock("CUDA events", _event, lambda start, end: start.elapsed_time(end) / 1e3, torch.cuda.synchronize)
    return Clock("wall time, awaited", _awaited, lambda start, end: float(end - start))


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _awaited() -> float:
    torch.accelerator.synchronize()
    return time.perf_counter()


class Stopwatch:
    """Splits the time of a step among named parts; each instant belongs to the innermost part that is running."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._running: list[str] = []
        self._marks: list[tuple[str, Any]] = []

    def enter(self, part: str) -> None:
        self._running.append(part)
        self._marks.append((part, self._clock.mark()))

    def exit(self) -> None:
        self._running.pop()
        self._marks.append((self._running[-1] if self._running else "", self._clock.mark()))

    def around(self, part: str, function: Callable[..., Result]) -> Callable[..., Result]:
        """Return the function with its time counted as `part`."""

        @wraps(function)
        def timed(*arguments: Any, **options: Any) -> Result:
            self.enter(part)
            try:
                return function(*arguments, **options)
            finally:
                self.exit()

        return timed

    def time(self, step: Callable[[], Result]) -> dict[str, float]:
        """Run a step and return the seconds of each part, `REST` among them; they add up to those of the step."""
        self._marks = []
        self.around(REST, step)()
        self._clock.settle()
        seconds: dict[str, float] = {}
        for (part, start), (_, end) in zip(self._marks[:-1], self._marks[1:], strict=True):
            seconds[part] = seconds.get(part, 0.0) + self._clock.between(start, end)
        return seconds


@contextmanager
def timed_parts(trainer: Trainer, stopwatch: Stopwatch) -> Iterator[None]:
    """Let the stopwatch time a trainer's networks, terms, augmentation, optimisers and all backward passes."""
    with ExitStack() as undo:

        def wrap(owner: Any, name: str, part: str) -> None:
            _put(undo, owner, name, stopwatch.around(part, getattr(owner, name)))

        networks: list[tuple[str, nn.Module]] = [("generator", trainer.unwrapped_generator)]
        for others in (trainer.networks.fixed, trainer.networks.copies):
            networks += [("loss networks", network) for network in others.values()]
        optimizers = [trainer.optimizer]
        adversary = trainer.adversary
        if adversary is not None:
            networks.append(("discriminator", trainer.unwrapped_discriminator))
            optimizers.append(trainer.discriminator_optimizer)
            loss = stopwatch.around("term discriminator", adversary.loss)
            _put(undo, trainer, "adversary", replace(adversary, loss=loss))
            if adversary.augmentation is not None:
                wrap(adversary.augmentation, "draw", "augmentation")
                wrap(adversary.augmentation, "apply", "augmentation")
        for part, network in networks:
            enter = network.register_forward_pre_hook(lambda *_, part=part: stopwatch.enter(part))
            exit_ = network.register_forward_hook(lambda *_: stopwatch.exit())
            undo.callback(enter.remove)
            undo.callback(exit_.remove)
        for optimizer in optimizers:
            wrap(optimizer, "step", "optimizers")
            wrap(optimizer, "zero_grad", "optimizers")
        wrap(trainer.accelerator, "clip_grad_norm_", "optimizers")
        if trainer.ema is not None:
            wrap(trainer.ema, "update_parameters", "optimizers")
        wrap(torch.autograd, "backward", "backward")
        wrap(torch.autograd, "grad", "backward")
        lines = {
            name: replace(line, term=replace(line.term, function=stopwatch.around(f"term {name}", line.term.function)))
            for name, line in trainer.objective.lines.items()
        }
        _put(undo, trainer.objective, "lines", lines)
        yield


def _put(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute, and have the object's own value put back."""
    if name in vars(owner):
        undo.callback(setattr, owner, name, vars(owner)[name])
    else:
        undo.callback(delattr, owner, name)
    setattr(owner, name, value)
