"""Cost of a step on any machine: floating-point operations, passes through the networks, bytes at its peak."""

import weakref
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from perceptual_mae.training.compilation import run_eagerly
from perceptual_mae.training.trainer import Trainer


@dataclass(frozen=True)
class StepCounts:
    """`flops` are 2 for a multiplication and an addition, of products and convolutions alone; passes count forwards.

    A pass is the whole batch through a network once. `peak_memory` is in bytes: weights, gradients, optimiser states
    and what the step keeps in addition at its fullest moment.
    """

    flops: int
    generator_passes: float
    discriminator_passes: float
    peak_memory: int


def count_step(trainer: Trainer, num_images: int, step: Callable[[], object]) -> StepCounts:
    """Run one step of `num_images` images and count it, all networks as they are: compiled ones cannot be counted."""
    judging = getattr(trainer, "unwrapped_discriminator", None)
    generators, discriminators = counted_forwards(trainer.unwrapped_generator), counted_forwards(judging)
    with generators as generated, discriminators as judged, run_eagerly():
        peak, flops = peak_memory(trainer, lambda: count_flops(step))
    return StepCounts(flops, sum(generated) / num_images, sum(judged) / num_images, peak)


class _Nowhere:
    """Stands for the module tracker of torch's counter, whose hooks refuse R1's gradients at the discriminator's input.

    All operations then count for the whole.
    """

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def count_flops(function: Callable[[], object]) -> int:
    """Return the floating-point operations of products and convolutions while `function` runs, backward included."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _Nowhere()  # type: ignore[assignment]
    with counter:
        function()
    return int(counter.get_total_flops())


@contextmanager
def counted_forwards(network: nn.Module | None) -> Iterator[list[int]]:
    """Collect the number of images of every forward pass through a network (none: nothing is collected)."""
    counts: list[int] = []
    if network is None:
        yield counts
        return

    def count(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        counts.append(len(next(leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor))))

    hook = network.register_forward_pre_hook(count)
    try:
        yield counts
    finally:
        hook.remove()


def peak_memory(trainer: Trainer, step: Callable[[], int]) -> tuple[int, int]:
    """Return the bytes a trainer takes at the fullest moment of a step, as if it were alone, and the step's result.

    On a CPU these are the bytes of tensors, without what an operation uses within itself.
    """
    kept = kept_storages(trainer)
    if trainer.accelerator.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = step()
        return sum(kept.values()) + torch.cuda.max_memory_allocated() - before, result
    with Footprint(kept) as footprint:
        result = step()
    return sum(kept.values()) + footprint.peak, result


def kept_storages(trainer: Trainer) -> dict[int, int]:
    """Return address -> bytes of what a trainer keeps between steps: weights, buffers, averages, optimiser states."""
    networks = [trainer.unwrapped_generator, getattr(trainer, "unwrapped_discriminator", None)]
    modules = [*networks, trainer.ema, trainer.networks.fixed, trainer.networks.copies]
    optimizers = [trainer.optimizer, getattr(trainer, "discriminator_optimizer", None)]
    tensors: list[Tensor] = []
    for module in modules:
        tensors += [*module.parameters(), *module.buffers()] if module is not None else []
    for optimizer in optimizers:
        states = tree_leaves(list(optimizer.state.values())) if optimizer is not None else []
        tensors += [leaf for leaf in states if isinstance(leaf, Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


class Footprint(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of tensors that come into being, takes off those that go; `peak` is the largest sum.

    Storages whose addresses are `kept` were there before and do not count.
    """

    def __init__(self, kept: Container[int] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._kept = kept
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        made = function(*arguments, **(options or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        address = storage.data_ptr()
        if address in self._kept or address in self._alive:
            return
        self._alive[address] = storage.nbytes()
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._remove, address)

    def _remove(self, address: int) -> None:
        self._now -= self._alive.pop(address, 0)
