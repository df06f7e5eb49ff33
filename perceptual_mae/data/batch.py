"""A batch of images, with the keys of its random draws."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from perceptual_mae.seeding import stream


@dataclass(frozen=True)
class Batch:
    """Images and labels of a batch; uint8 (B, C, H, W) until `to` converts them to floats in [0, 1].

    `labels` are int64 (B,), -1 without a class. `indices` and `passes` (int64 (B,), always on the CPU) are each image's
    index in the data set and pass over the data (0 in evaluation): they key its random draws. `unreadable` lists the
    files that could not be read, with the reason; in training the next readable image replaces each.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    passes: Tensor
    unreadable: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch with images as float32 in [0, 1], and labels, on `device`; the copy may be asynchronous."""
        images = self.images.to(device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = images.to(torch.float32).div_(255)
        return replace(self, images=images, labels=self.labels.to(device, non_blocking=True))

    def draws(self, name: str, seed: int) -> list[torch.Generator]:
        """Return each sample's own generator of random numbers: a function of (seed, pass, index), on the CPU."""
        samples = zip(self.passes.tolist(), self.indices.tolist(), strict=True)
        return [stream(name, seed, one_pass, index) for one_pass, index in samples]

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory, from which copies to a GPU run in the background."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())


def collate(
    images: Sequence[Tensor],
    labels: Sequence[int],
    samples: Sequence[tuple[int, int]],
    unreadable: Sequence[tuple[str, str]],
) -> Batch:
    """Return the batch of images (C, H, W) and labels; `samples` has the (pass, index) of each."""
    keys = torch.tensor(samples, dtype=torch.int64).view(-1, 2)
    stacked = torch.stack(list(images)) if images else torch.empty(0, dtype=torch.uint8)
    passes, indices = keys[:, 0].clone(), keys[:, 1].clone()
    return Batch(stacked, torch.tensor(labels, dtype=torch.int64), indices, passes, tuple(unreadable))
