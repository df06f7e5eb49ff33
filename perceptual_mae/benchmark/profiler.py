"""Time of a step by its parts: a stopwatch with a stack, and a trainer's own attributes wrapped by it.

Nothing here knows in which order a step does its work; only calls are timed.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from perceptual_mae.generator.reconstruction import Reconstruction
from perceptual_mae.training.trainer import Trainer

Result = TypeVar("Result")

REST = "rest"
"""What no other part accounts for: data to the device, masks, pooling, the discriminator's loss, scalars."""

BACKWARD = "backward"
"""Backward passes through terms, pooling and gradients (R1); through networks they have the network's name, too."""


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

    def follow(self, part: str, outputs: Iterable[Any], inputs: Iterable[Any]) -> None:
        """Count backward passes as the part's own from the gradients of its outputs on to those of its inputs.

        Inputs that are leaves mark no end: nothing comes after them.
        """
        sources = [each for each in inputs if isinstance(each, Tensor) and each.grad_fn is not None]
        for tensors, name in ((outputs, f"{BACKWARD} {part}"), (sources, BACKWARD)):
            for tensor in tensors:
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(partial(self._turn_to, name))  # type: ignore[no-untyped-call]

    def _turn_to(self, part: str, _: Tensor) -> None:
        """Go on as another part of the backward pass that is running."""
        if self._running and self._running[-1].startswith(BACKWARD):
            self._running[-1] = part
            self._marks.append((part, self._clock.mark()))

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
    """Let the stopwatch time a trainer's networks, terms, augmentation, optimisers, and backward passes by network."""
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
                apply = stopwatch.around("augmentation", adversary.augmentation.apply)
                _put(undo, adversary.augmentation, "apply", partial(_followed, stopwatch, apply))
        for part, network in networks:
            enter = network.register_forward_pre_hook(lambda *_, part=part: stopwatch.enter(part))
            exit_ = network.register_forward_hook(partial(_leave, stopwatch, part))
            undo.callback(enter.remove)
            undo.callback(exit_.remove)
        for optimizer in optimizers:
            wrap(optimizer, "step", "optimizers")
            wrap(optimizer, "zero_grad", "optimizers")
        wrap(trainer.accelerator, "clip_grad_norm_", "optimizers")
        if trainer.ema is not None:
            wrap(trainer.ema, "update_parameters", "optimizers")
        wrap(torch.autograd, "backward", BACKWARD)
        wrap(torch.autograd, "grad", BACKWARD)
        lines = {
            name: replace(line, term=replace(line.term, function=stopwatch.around(f"term {name}", line.term.function)))
            for name, line in trainer.objective.lines.items()
        }
        _put(undo, trainer.objective, "lines", lines)
        yield


def _leave(stopwatch: Stopwatch, part: str, _: nn.Module, inputs: Any, result: Any) -> None:
    """End a network's forward pass, and follow its backward pass."""
    stopwatch.exit()
    outputs = (*result.pyramid, *result.prediction) if isinstance(result, Reconstruction) else tree_leaves(result)
    stopwatch.follow(part, outputs, tree_leaves(inputs))


def _followed(stopwatch: Stopwatch, apply: Callable[..., Any], draws: Any, pyramid: Any) -> Any:
    """Augment a pyramid, and follow the backward pass."""
    result = apply(draws, pyramid)
    stopwatch.follow("augmentation", result, pyramid)
    return result


def _put(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute, and have the object's own value put back."""
    if name in vars(owner):
        undo.callback(setattr, owner, name, vars(owner)[name])
    else:
        undo.callback(delattr, owner, name)
    setattr(owner, name, value)
