"""What a discriminator is shown of reconstructions: which levels, with which pixels, and how much gradient returns.

And which part of a batch: a share of its images, a random square of each.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from discriminators.penalties import check_batch_share, share_of_images
from perceptual_mae.images import Pyramid, Size, composite, mask_image, pyramid
from perceptual_mae.seeding import stream

Discount = float | Literal["k^-2"]


@dataclass(frozen=True)
class ShownPart:
    """The part of a micro-batch that the discriminator is shown: its first images, or a square of each of them.

    crop: side of the squares in pixels, None for whole images. corners: row and column at which each image's begins.
    """

    num_images: int
    crop: int | None = None
    corners: tuple[tuple[int, int], ...] = ()

    def __call__(self, levels: Pyramid) -> Pyramid:
        """Return the part of levels (B, C, H_s, W_s); squares are cut from the first, (num_images, C, crop, crop)."""
        first = tuple(level[: self.num_images] for level in levels)
        if self.crop is None:
            return first
        squares = [
            image[:, top : top + self.crop, left : left + self.crop]
            for image, (top, left) in zip(first[0].unbind(), self.corners, strict=False)
        ]
        return (torch.stack(squares),)


@dataclass(frozen=True)
class ShownParts:
    """Draws which part of a micro-batch the discriminator is shown; real and fake are cut alike.

    share: of the images, in (0, 1], the first ones. crop: side in pixels of a random square of each image of `size`,
    None for whole images. Its place is a function of (seed, step, sample index). Raises ValueError for a share that is
    none and for squares larger than the images.
    """

    size: Size
    share: float = 1.0
    crop: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_batch_share("discriminator", self.share)
        if self.crop is not None and self.crop > min(self.size):
            height, width = self.size
            raise ValueError(f"no crop of {self.crop} pixels fits in images of {height}x{width}; lower it")

    def __call__(self, indices: Tensor, step: int) -> ShownPart:
        """Return the part of images with these sample indices (B,); step: counted from 0."""
        num_images = share_of_images(len(indices), self.share)
        if self.crop is None:
            return ShownPart(num_images)
        corners = [self.corner(step, index) for index in indices.tolist()]
        return ShownPart(num_images, self.crop, tuple(corners))

    def corner(self, step: int, index: int) -> tuple[int, int]:
        """Return the row and the column at which an image's square begins; all places are equally likely."""
        assert self.crop is not None
        generator = stream("shown crop", self.seed, step, index)
        top, left = (int(torch.randint(side - self.crop + 1, (), generator=generator)) for side in self.size)
        return top, left


@dataclass(frozen=True)
class DiscriminatorInput:
    """From a generator's images to the pyramid that the discriminator is shown, before augmentation.

    levels: how many the discriminator reads. pooled: all are averaged from the full size, whatever else the generator
    writes. composite: visible patches are the original's; a level takes of each its hidden share. discretise: the full
    size is rounded to bytes, with the gradient of the unrounded. low_levels: factor of the gradient that returns
    through each level below the full size, or "k^-2", with k how much smaller the level is.
    """

    levels: int
    pooled: bool = False
    composite: bool = False
    discretise: bool = False
    low_levels: Discount = 1.0

    def __call__(
        self, images: Pyramid, original: Tensor, mask: Tensor, grid: Size, part: ShownPart | None = None
    ) -> Pyramid:
        """Return the levels shown of images (B, C, H_s, W_s) in [0, 1]; original: (B, C, H, W), mask: (B, L).

        Originals come out as they are, pooled to as many levels. part: what is shown of them, None for all.
        """
        shown = images[: 1 if self.pooled else self.levels]
        if self.composite:
            size = (original.shape[-2], original.shape[-1])
            hidden = pyramid(mask_image(mask, grid, size).to(original), len(shown))
            shown = tuple(map(composite, pyramid(original, len(shown)), shown, hidden))
        if self.discretise:
            shown = (round_to_bytes(shown[0]), *shown[1:])
        if len(shown) < self.levels:
            shown = pyramid(shown[0], self.levels)
        if part is not None:
            shown = part(shown)
        if self.low_levels == 1:
            return shown
        return tuple(scale_gradient(level, self.factor(shown[0].shape[-1] / level.shape[-1])) for level in shown)

    def real(self, images: Tensor, part: ShownPart | None = None) -> Pyramid:
        """Return the levels shown of originals (B, C, H, W), or of a part of them."""
        levels = pyramid(images, self.levels) if self.levels > 1 else (images,)
        return levels if part is None else part(levels)

    def factor(self, k: float) -> float:
        """Return the factor of the gradient through a level k times smaller than the full size."""
        if k == 1:
            return 1.0
        return k**-2 if self.low_levels == "k^-2" else float(self.low_levels)


def scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    """Return the same values, of any shape, whose gradient is multiplied by `factor` on the way back."""
    constant = tensor.detach()
    return constant + factor * (tensor - constant)


def round_to_bytes(images: Tensor) -> Tensor:
    """Return images (B, C, H, W) clamped to [0, 1] and rounded to multiples of 1/255, with the identity's gradient."""
    constant = images.detach()
    return constant.clamp(0, 1).mul(255).round().div(255) + (images - constant)
