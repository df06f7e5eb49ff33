"""A batch of images with a class for each pixel."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from perceptual_mae.transfer.loading import Keyed, keys_of


@dataclass(frozen=True)
class SegmentationBatch(Keyed):
    """Images (B, 3, H, W), uint8 on the CPU until `to` makes floats in [0, 1] of them, and classes int64 (B, H, W)."""

    images: Tensor
    masks: Tensor

    def to(self, device: torch.device | str) -> "SegmentationBatch":
        """Return the batch on `device`; the copy may be asynchronous."""
        images = self.images.to(device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = images.to(torch.float32).div_(255)
        return replace(self, images=images, masks=self.masks.to(device, non_blocking=True).long())

    def pin_memory(self) -> "SegmentationBatch":
        """Return the batch in page-locked memory."""
        return replace(self, images=self.images.pin_memory(), masks=self.masks.pin_memory())


def collate_segmentation(
    samples: Sequence[tuple[Tensor, Tensor]], keys: Sequence[tuple[int, int]]
) -> SegmentationBatch:
    """Return the batch of images (3, H, W) and classes uint8 (H, W) of one size; `keys` has the (pass, index) of each.

    Masks stay uint8 until `to`: an eighth of the memory between processes.
    """
    images, masks = zip(*samples, strict=True)
    return SegmentationBatch(
        *keys_of(keys),
        torch.stack([image.as_subclass(Tensor) for image in images]),
        torch.stack([mask.as_subclass(Tensor) for mask in masks]),
    )
