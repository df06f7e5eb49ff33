"""Augmentation of images and their classes for training, and how held-out images are scaled."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torchvision import tv_tensors

from perceptual_mae.errors import UserError
from perceptual_mae.images import Size
from perceptual_mae.transfer.recipes import Share, Side
from perceptual_mae.transfer.segmentation.data import IGNORED
from perceptual_mae.transfer.transforms import JitterCrop, photometric_distortion

Factor = Annotated[float, Field(gt=0, le=16)]


class SegmentationTransform:
    """Scale jitter, flip, a fixed crop and changed colours (mmsegmentation's training pipeline).

    Options:
        crop: height and width of training images [mmsegmentation]
        base: short and long side into which an image just fits before it is scaled; null: crop [mmsegmentation]
        scale: smallest and largest factor of that size [mmsegmentation]
        flip: probability that an image is mirrored left to right [mmsegmentation]
        max_class_share: largest share of a crop that one class may have; others are drawn, ten times at
            most [mmsegmentation]
        photometric: change brightness, contrast, saturation and hue at random [mmsegmentation]

    Called with (image, mask) and the generator of all draws; returns uint8 (3, *crop) and classes uint8 (*crop).
    """

    def __init__(
        self,
        *,
        crop: tuple[Side, Side] = (512, 512),
        base: tuple[Side, Side] | None = None,
        scale: tuple[Factor, Factor] = (0.5, 2.0),
        flip: Share = 0.5,
        max_class_share: Annotated[float, Field(gt=0, le=1)] = 0.75,
        photometric: bool = True,
    ) -> None:
        if scale[0] > scale[1]:
            raise UserError(f"augment.scale: is {list(scale)}; give [smallest, largest]")
        self.size: Size = crop
        self.max_class_share, self.photometric = max_class_share, photometric
        self._jitter = JitterCrop(
            crop, scale=scale, base=base or crop, any_orientation=base is not None, flip=flip, mask_fill=IGNORED
        )

    def __call__(
        self, sample: tuple[tv_tensors.Image, tv_tensors.Mask], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        image, (mask,) = self._jitter(sample[0], [sample[1]], generator, self._is_mixed)
        if self.photometric:
            image = photometric_distortion(image, generator)
        return image, mask

    def _is_mixed(self, targets: Sequence[Tensor]) -> bool:
        if self.max_class_share >= 1:
            return True
        classes = targets[0].as_subclass(Tensor)
        counts = torch.bincount(classes[classes != IGNORED].flatten())
        present = counts[counts > 0]
        return len(present) > 1 and float(present.max()) < self.max_class_share * float(present.sum())
