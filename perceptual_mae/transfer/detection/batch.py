"""A batch of images with the objects in them, as Mask R-CNN takes it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from perceptual_mae.images import Size
from perceptual_mae.transfer.loading import Keyed, keys_of

Target = dict[str, Tensor]
"""Objects of one image: boxes float (N, 4) as left, top, right, bottom; labels int64 (N,) from 1; masks (N, S, S)."""


@dataclass(frozen=True)
class DetectionBatch(Keyed):
    """Images (B, 3, S, S), uint8 until `to` converts them to floats in [0, 1], and the objects of each.

    sizes: (height, width) of the part that is no padding; original_sizes: of the images in their files.
    """

    images: Tensor
    targets: tuple[Target, ...]
    sizes: tuple[Size, ...] = ()
    original_sizes: tuple[Size, ...] = ()

    def to(self, device: torch.device | str) -> "DetectionBatch":
        """Return the batch on a device, with images as float32 in [0, 1]; the copy may be asynchronous."""
        images = self.images.to(device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = images.to(torch.float32).div_(255)
        targets = tuple(
            {name: value.to(device, non_blocking=True) for name, value in target.items()} for target in self.targets
        )
        return replace(self, images=images, targets=targets)

    def pin_memory(self) -> "DetectionBatch":
        """Return the batch in page-locked memory, from which copies to a GPU run in the background."""
        targets = tuple({name: value.pin_memory() for name, value in target.items()} for target in self.targets)
        return replace(self, images=self.images.pin_memory(), targets=targets)


@dataclass(frozen=True)
class PreparedImage:
    """One image (3, S, S) with its objects; `size` and `original_size` as in `DetectionBatch`."""

    image: Tensor
    target: Target
    size: Size = (0, 0)
    original_size: Size = (0, 0)


def collate(prepared: Sequence[PreparedImage], samples: Sequence[tuple[int, int]]) -> DetectionBatch:
    """Return the batch of prepared images; `samples` has the (pass, index) of each."""
    return DetectionBatch(
        *keys_of(samples),
        torch.stack([each.image for each in prepared]),
        tuple(each.target for each in prepared),
        tuple(each.size for each in prepared),
        tuple(each.original_size for each in prepared),
    )
