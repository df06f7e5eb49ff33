"""Transforms of one uint8 image: random crop, flip and colour in training, centre crop in evaluation.

Everything stays uint8 and on tensors (half the cost of PIL and floats); a batch turns into floats on the device.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from perceptual_mae.errors import UserError
from perceptual_mae.images import Size

CROP_RATIOS = (3 / 4, 4 / 3)
CROP_TRIES = 10


class TrainTransform:
    """Augmentation of MAE: a random crop, resized to `size` (bicubic, antialiased), and a random flip.

    The aspect ratio of a crop is that of `size` times a factor from 3/4 to 4/3. Called with a uint8 image (3, H, W) and
    the generator of all its draws; returns uint8 (3, *size).

    Options:
        crop: "random_resized" draws until a crop fits; "clamped" draws once and cuts it to the image (as MAE's linear
            probe); "center" takes the centre [MAE]
        crop_scale: smallest and largest share of the image's area in a random crop, in (0, 1] [MAE]
        flip: probability of a horizontal flip [MAE]
        color_jitter: strength s in [0, 1]: factors of brightness, contrast and saturation from [1 - s, 1 + s], hue
            shift from [-s/4, s/4] of a turn; 0 is off [MAE]
        grayscale: probability of a grey image [MAE]

    Raises UserError for options out of range.
    """

    def __init__(
        self,
        size: Size,
        *,
        crop: Literal["random_resized", "clamped", "center"] = "random_resized",
        crop_scale: tuple[float, float] = (0.2, 1.0),
        flip: float = 0.5,
        color_jitter: float = 0.0,
        grayscale: float = 0.0,
    ) -> None:
        if crop not in ("random_resized", "clamped", "center"):
            raise UserError(f"data.crop is '{crop}'; choose from: random_resized, clamped, center")
        if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise UserError(
                f"data.crop_scale is {crop_scale}; give two shares of the area, 0 < smallest <= largest <= 1"
            )
        for name, value in (("flip", flip), ("grayscale", grayscale), ("color_jitter", color_jitter)):
            if not 0 <= value <= 1:
                raise UserError(f"data.{name} is {value}; it must be in [0, 1]")
        self.size = size
        self.crop = crop
        self.crop_scale = crop_scale
        self.flip = flip
        self.color_jitter = color_jitter
        self.grayscale = grayscale

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        # One draw of a fixed length: what the flip gets does not depend on how many crops were tried.
        draws: list[float] = torch.rand(2 * CROP_TRIES + 4, generator=generator).tolist()
        if self.crop == "center":
            image = cover_and_crop(image, self.size)
        else:
            top, left, height, width = random_crop_box(
                (image.shape[-2], image.shape[-1]), self.size, self.crop_scale, draws, clamp=self.crop == "clamped"
            )
            image = _resize(image[:, top : top + height, left : left + width], self.size)
        if draws[-1] < self.flip:
            image = image.flip(-1)
        if self.color_jitter:
            image = _jitter(image, self.color_jitter, generator)
        if draws[-2] < self.grayscale:
            image = F.rgb_to_grayscale(image, num_output_channels=image.shape[0])
        return image


class EvaluationTransform:
    """Resizes the shorter side of a uint8 image (3, H, W) to `resize` (bicubic, antialiased) and crops the centre.

    Without `resize` the image is scaled until it just covers the crop. An image that fits already comes back as it is.
    """

    def __init__(self, size: Size, resize: int | None = None) -> None:
        if resize is not None and resize < min(size):
            raise UserError(
                f"data.eval_resize is {resize}, less than the crop's shorter side {min(size)}; raise or drop it"
            )
        self.size = size
        self.resize = resize

    def __call__(self, image: Tensor) -> Tensor:
        return cover_and_crop(image, self.size, self.resize)


def random_crop_box(
    image_size: Size, size: Size, crop_scale: tuple[float, float], draws: list[float], *, clamp: bool = False
) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a crop, as torchvision's RandomResizedCrop draws it, from uniform `draws`.

    Area uniform in `crop_scale`, log of width / height uniform in the ratios 3/4 to 4/3 (times that of `size`); after
    ten tries the largest centred crop within those ratios. With `clamp` the first try counts, its sides cut to the
    image's.
    """
    height, width = image_size
    low, high = (ratio * size[1] / size[0] for ratio in CROP_RATIOS)
    for attempt in range(CROP_TRIES):
        share = crop_scale[0] + draws[2 * attempt] * (crop_scale[1] - crop_scale[0])
        ratio = low * (high / low) ** draws[2 * attempt + 1]
        crop_height = round(math.sqrt(share * height * width / ratio))
        crop_width = round(math.sqrt(share * height * width * ratio))
        if clamp:
            crop_height, crop_width = min(max(1, crop_height), height), min(max(1, crop_width), width)
        if 0 < crop_height <= height and 0 < crop_width <= width:
            top = min(int(draws[2 * CROP_TRIES] * (height - crop_height + 1)), height - crop_height)
            left = min(int(draws[2 * CROP_TRIES + 1] * (width - crop_width + 1)), width - crop_width)
            return top, left, crop_height, crop_width
    crop_height = min(height, max(1, round(width / low)))
    crop_width = min(width, max(1, round(height * high)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def cover_and_crop(image: Tensor, size: Size, resize: int | None = None) -> Tensor:
    """Return the centre (C, *size) of an image (C, H, W) in its ratio: shorter side `resize`, or just covering."""
    height, width = image.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    if resize is not None:
        scale = max(scale, resize / min(height, width))
    # A very long image is cropped before it is resized: resizing what is cropped away would cost much.
    longest = tuple(math.ceil(4 * max(size) / scale) for _ in range(2))
    if height > longest[0] or width > longest[1]:
        image = F.center_crop(image, [min(height, longest[0]), min(width, longest[1])])
        height, width = image.shape[-2:]
    scaled = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    image = _resize(image, scaled)
    top, left = round((scaled[0] - size[0]) / 2), round((scaled[1] - size[1]) / 2)
    return image[:, top : top + size[0], left : left + size[1]]


def _resize(image: Tensor, size: Size) -> Tensor:
    """Return a uint8 image (C, H, W) as (C, *size)."""
    if tuple(image.shape[-2:]) == size:
        return image
    resized: Tensor = F.resize(image, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)
    return resized


def _jitter(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Return a uint8 image (3, H, W) with brightness, contrast, saturation and hue changed in random order."""
    factors = (1 + strength * (2 * torch.rand(4, generator=generator) - 1)).tolist()
    for step in torch.randperm(4, generator=generator).tolist():
        if step == 0:
            image = F.adjust_brightness(image, factors[0])
        elif step == 1:
            image = F.adjust_contrast(image, factors[1])
        elif step == 2:
            image = F.adjust_saturation(image, factors[2])
        else:
            image = F.adjust_hue(image, (factors[3] - 1) / 4)
    return image
