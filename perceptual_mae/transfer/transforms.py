"""Augmentation of images with their annotations, on torchvision's tv_tensors: scale jitter, flip and a fixed crop.

Every draw comes from the sample's own generator, of which torchvision's random transforms know nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from perceptual_mae.images import Size

TRIES = 10
"""Crops that are drawn at most until one is accepted (mmsegmentation's number)."""


class JitterCrop:
    """Large-scale jitter (Ghiasi et al. 2021): an image scaled at random, flipped, and cropped or padded to `size`.

    The image is scaled until it just fits into `base` (height, width; None: `size`) times a factor uniform in `scale`,
    its ratio kept. The window of `size` lies anywhere inside it; what is missing below and to the right is black, and
    `mask_fill` in masks. any_orientation: base is the short and the long side, whichever way the image lies.
    """

    def __init__(
        self,
        size: Size,
        *,
        scale: tuple[float, float] = (0.1, 2.0),
        base: Size | None = None,
        any_orientation: bool = False,
        flip: float = 0.5,
        mask_fill: int = 0,
    ) -> None:
        self.size, self.scale, self.base = size, scale, base or size
        self.any_orientation, self.flip, self.mask_fill = any_orientation, flip, mask_fill

    def __call__(
        self,
        image: tv_tensors.Image,
        targets: Sequence[Tensor],
        generator: torch.Generator,
        accept: Callable[[Sequence[Tensor]], bool] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the image, uint8 (3, *size), and its targets (masks, boxes) under the same change.

        accept: called with the targets of a crop before padding; others are drawn until it is true, ten times at most.
        Boxes beyond the crop are left as they are: clamp and drop them.
        """
        draws: list[float] = torch.rand(2 + 2 * TRIES, generator=generator).tolist()
        scaled = self.scaled_size((image.shape[-2], image.shape[-1]), draws[0])
        parts = [resize(each, scaled) for each in (image, *targets)]
        if draws[1] < self.flip:
            parts = [F.horizontal_flip(each) for each in parts]
        height, width = (min(side, whole) for side, whole in zip(self.size, scaled, strict=True))
        for attempt in range(TRIES):
            down, right = draws[2 + 2 * attempt : 4 + 2 * attempt]
            top, left = int(down * (scaled[0] - height + 1)), int(right * (scaled[1] - width + 1))
            if accept is None or accept([F.crop(each, top, left, height, width) for each in parts[1:]]):
                break
        parts = [F.crop(each, top, left, height, width) for each in parts]
        padded = [self._pad(each, self.size[0] - height, self.size[1] - width) for each in parts]
        return padded[0], padded[1:]

    def scaled_size(self, size: Size, draw: float) -> Size:
        """Return the size (H, W) that an image of `size` is scaled to, for a draw uniform in [0, 1)."""
        factor = self.scale[0] + draw * (self.scale[1] - self.scale[0])
        return fitted(size, (self.base[0] * factor, self.base[1] * factor), any_orientation=self.any_orientation)

    def _pad(self, part: Tensor, below: int, right: int) -> Tensor:
        fill = self.mask_fill if isinstance(part, tv_tensors.Mask) else 0
        padded: Tensor = F.pad(part, [0, 0, right, below], fill=fill)
        return padded


def fitted(size: Size, base: tuple[float, float], *, any_orientation: bool = False) -> Size:
    """Return the largest size of an image's ratio, at least 1 pixel a side, that fits into `base` (height, width).

    any_orientation: base is the short and the long side.
    """
    if any_orientation:
        ratio = min(min(base) / min(size), max(base) / max(size))
    else:
        ratio = min(base[0] / size[0], base[1] / size[1])
    return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))


def resize(part: Tensor, size: Size) -> Tensor:
    """Return a tv_tensor at another size: images bilinear, masks by the nearest centre, boxes scaled."""
    is_mask = isinstance(part, tv_tensors.Mask)
    kind: Any = InterpolationMode.NEAREST_EXACT if is_mask else InterpolationMode.BILINEAR
    resized: Tensor = F.resize(part, list(size), interpolation=kind, antialias=not is_mask)
    return resized


def photometric_distortion(image: Tensor, generator: torch.Generator) -> Tensor:
    """Return a uint8 image (3, H, W) with brightness, contrast, saturation and hue changed, each in half of all cases.

    The usual ranges (Liu et al. 2016, SSD): brightness by up to 32 of 255, contrast and saturation times 0.5 to 1.5,
    hue by up to 18 degrees; contrast before or after the colours.
    """
    draws: list[float] = torch.rand(9, generator=generator).tolist()
    shift, contrast, saturation, hue = (2 * draw - 1 for draw in draws[:4])
    if draws[4] < 0.5:
        image = (image.to(torch.int16) + round(32 * shift)).clamp(0, 255).to(torch.uint8)
    comes_first = draws[8] < 0.5
    if draws[5] < 0.5 and comes_first:
        image = _contrast(image, contrast)
    if draws[6] < 0.5:
        image = F.adjust_saturation(image, 1 + saturation / 2)
    if draws[7] < 0.5:
        image = F.adjust_hue(image, hue * 18 / 360)
    if draws[5] < 0.5 and not comes_first:
        image = _contrast(image, contrast)
    return image


def _contrast(image: Tensor, draw: float) -> Tensor:
    """Scale values about 0, as SSD does."""
    return (image.float() * (1 + draw / 2)).round().clamp(0, 255).to(torch.uint8)
