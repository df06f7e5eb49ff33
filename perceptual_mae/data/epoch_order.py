"""The order of training images: a function of seed, epoch and step alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from perceptual_mae.errors import UserError
from perceptual_mae.seeding import stream


class EpochPlan:
    """The order of the training images: pass p over the data (from 1) is one seeded permutation of all of them.

    Epoch e (from 1) is pass e without the remainder that fills no batch. With `epoch_images`, the passes form one
    stream that is cut into epochs of epoch_images // batch_size steps; a batch may then hold the end of one pass and
    the start of the next. `batch_size` counts the images of an optimiser step over all processes and micro-batches.
    """

    def __init__(self, num_images: int, batch_size: int, *, seed: int, epoch_images: int | None = None) -> None:
        if num_images == 0:
            raise UserError("the training set is empty; point data.root to a folder with images")
        if epoch_images is None and num_images < batch_size:
            raise UserError(
                f"{num_images} training images do not fill one batch of {batch_size}; lower training.batch_size, "
                f"or set training.epoch_images={batch_size} or more"
            )
        if epoch_images is not None and epoch_images < batch_size:
            raise UserError(
                f"training.epoch_images is {epoch_images}, less than one batch of {batch_size}; raise it, "
                "or lower training.batch_size"
            )
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.epoch_images = epoch_images
        self.steps_per_epoch = (num_images if epoch_images is None else epoch_images) // batch_size
        self._orders: dict[int, Tensor] = {}

    def batch(self, epoch: int, step: int) -> list[tuple[int, int]]:
        """Return the (pass, index) of the global batch of a step; epochs count from 1, their steps from 0."""
        if epoch < 1 or not 0 <= step < self.steps_per_epoch:
            raise ValueError(
                f"no step {step} in epoch {epoch}: epochs count from 1, steps to {self.steps_per_epoch - 1}"
            )
        if self.epoch_images is None:
            first = (epoch - 1) * self.num_images + step * self.batch_size
        else:
            first = ((epoch - 1) * self.steps_per_epoch + step) * self.batch_size
        samples: list[tuple[int, int]] = []
        while len(samples) < self.batch_size:
            full_passes, offset = divmod(first + len(samples), self.num_images)
            indices = self._order(full_passes + 1)[offset : offset + self.batch_size - len(samples)]
            samples += [(full_passes + 1, index) for index in indices.tolist()]
        return samples

    def _order(self, pass_: int) -> Tensor:
        """Return the indices of a pass (from 1) in their order, int64 (num_images,)."""
        if pass_ not in self._orders:
            while len(self._orders) > 1:  # a batch may straddle two passes; older ones are not needed again
                del self._orders[next(iter(self._orders))]
            self._orders[pass_] = torch.randperm(self.num_images, generator=stream("order", self.seed, pass_))
        return self._orders[pass_]


@dataclass(frozen=True)
class ProcessShare:
    """The part of each global batch that one of several processes takes, micro-batch by micro-batch.

    Process r of P takes, for micro-batch a of A, every (P * A)-th sample from the (r * A + a)-th on. Raises UserError
    where a batch cannot be shared equally.
    """

    plan: EpochPlan
    num_processes: int = 1
    process_index: int = 0
    accumulation: int = 1

    def __post_init__(self) -> None:
        if self.plan.batch_size % self.stride:
            raise UserError(
                f"training.batch_size {self.plan.batch_size} is not a multiple of {self.num_processes} process(es) x "
                f"{self.accumulation} micro-batch(es); change it or training.accumulation"
            )

    @property
    def stride(self) -> int:
        """From a sample of a micro-batch to its next one."""
        return self.num_processes * self.accumulation

    def micro_batches(self, epoch: int, step: int) -> Iterator[list[tuple[int, int]]]:
        """Yield the (pass, index) of each micro-batch of a step; see `EpochPlan.batch`."""
        batch = self.plan.batch(epoch, step)
        for micro_batch in range(self.accumulation):
            yield batch[self.process_index * self.accumulation + micro_batch :: self.stride]
