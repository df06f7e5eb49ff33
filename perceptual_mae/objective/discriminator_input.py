"""What a discriminator is shown of reconstructions: which levels, with which pixels, and how much gradient returns."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from perceptual_mae.images import Pyramid, Size, composite, mask_image, pyramid

Discount = float | Literal["k^-2"]


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

    def __call__(self, images: Pyramid, original: Tensor, mask: Tensor, grid: Size) -> Pyramid:
        """Return the levels shown of images (B, C, H_s, W_s) in [0, 1]; original: (B, C, H, W), mask: (B, L).

        Originals come out as they are, pooled to as many levels.
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
        if self.low_levels == 1:
            return shown
        return tuple(scale_gradient(level, self.factor(shown[0].shape[-1] / level.shape[-1])) for level in shown)

    def real(self, images: Tensor) -> Pyramid:
        """Return the levels shown of originals (B, C, H, W)."""
        return pyramid(images, self.levels) if self.levels > 1 else (images,)

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
