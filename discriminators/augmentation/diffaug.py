"""Differentiable augmentation of image pyramids (Differentiable Augmentation for Data-Efficient GAN Training)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from discriminators.augmentation.color import cut_out
from discriminators.placement import like, on_device
from discriminators.precision import full_precision

Policy = Literal["color", "translation", "cutout"]
POLICIES: tuple[Policy, ...] = ("color", "translation", "cutout")
"""The groups of operations, in the order in which they act."""

_COLUMNS = 8


@dataclass(frozen=True)
class DiffAugDraws:
    """Operations on B images; tensors (B,) unless stated otherwise, on the CPU.

    Lengths are fractions of a side (x of the width, y of the height), strengths are for pixels in [-1, 1].
    """

    acts: Tensor
    """bool: whether the image is changed at all."""
    brightness: Tensor
    saturation: Tensor
    contrast: Tensor
    shift: Tensor
    """(B, 2) x and y: whole pixels of the largest level."""
    cutout_center: Tensor
    """(B, 2) x and y, from the top left corner."""

    def __len__(self) -> int:
        return len(self.acts)


class DiffAug:
    """Differentiable augmentation: colour, translation and cutout at full strength of all the discriminator is shown.

    Nothing adapts; `controller` is None. Draw once, apply to every level of real and fake that are to be compared:

        draws = diffaug.draw(generators)                   # one torch.Generator an image
        real, fake = diffaug.apply(draws, real), diffaug.apply(draws, fake)

    Options:
        policy: groups of operations, of color (brightness, saturation, contrast), translation and cutout [DiffAugment]
        probability: probability that an image is augmented, in [0, 1] [DiffAugment]
        cutout: side of the square that is cut out, as a share of the image's, in (0, 1] [DiffAugment]
        translation: largest translation, as a share of the image's side, in (0, 1) [DiffAugment]

    Raises ValueError for options out of range.
    """

    controller: None = None

    def __init__(
        self,
        resolutions: Sequence[tuple[int, int]],
        channels: int,
        *,
        policy: tuple[Policy, ...] = POLICIES,
        probability: float = 1.0,
        cutout: float = 0.5,
        translation: float = 0.125,
    ) -> None:
        del channels  # of the augmentations' common signature: any number will do
        if unknown := [group for group in policy if group not in POLICIES]:
            raise ValueError(f"unknown policy {unknown[0]!r} of diffaug; choose from: {', '.join(POLICIES)}")
        if not policy or not 0 <= probability <= 1 or not 0 < cutout <= 1 or not 0 < translation < 1:
            raise ValueError(
                "diffaug needs a policy, 0 <= probability <= 1, 0 < cutout <= 1 and 0 < translation < 1, "
                f"not {list(policy)}, {probability}, {cutout} and {translation}"
            )
        self.policy, self.probability, self.cutout = frozenset(policy), probability, cutout
        self.size = resolutions[0]
        self.largest_shift = [math.floor(translation * side + 0.5) for side in self.size]  # in pixels, y and x

    def draw(self, generators: Sequence[torch.Generator]) -> DiffAugDraws:
        """Return the operations on len(generators) images; image i draws 8 numbers from generators[i] alone."""
        numbers = [torch.rand(_COLUMNS, dtype=torch.float64, generator=generator) for generator in generators]
        acts, brightness, saturation, contrast, *places = torch.stack(numbers).unbind(dim=1)
        shifts = [
            ((place * (2 * largest + 1)).floor() - largest) / side
            for place, largest, side in zip(places[:2], reversed(self.largest_shift), reversed(self.size), strict=True)
        ]
        return DiffAugDraws(
            acts=acts < self.probability,
            brightness=brightness - 0.5,
            saturation=2 * saturation,
            contrast=contrast + 0.5,
            shift=torch.stack(shifts, dim=1),
            cutout_center=torch.stack(places[2:], dim=1),
        )

    def apply(self, draws: DiffAugDraws, pyramid: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Apply the same operations to all levels of a pyramid (B, C, H_s, W_s), largest first, of images in [0, 1].

        Results may leave [0, 1]: they are never clamped. What translation uncovers and cutout covers is mid-grey. Lower
        levels are shifted by the same share of their side, between pixels bilinearly. Twice differentiable in the
        images. Computes in float32 or wider, under autocast too, and returns the dtype it was given. Images that are
        not augmented keep their values; where none is, the same tensors are returned.
        Raises ValueError unless there is a draw for each image.
        """
        if len(draws) != len(pyramid[0]):
            raise ValueError(
                f"got {len(pyramid[0])} images but draws for {len(draws)}; draw with one generator an image"
            )
        if not draws.acts.any():
            return tuple(pyramid)
        return tuple(self._augment(draws, images) for images in pyramid)

    def follow(self, fraction: float) -> None:
        """Do nothing: no option moves with the share of the run's steps already taken."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return nothing: each draw is a function of its generators alone."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing; see `state_dict`."""

    def _augment(self, draws: DiffAugDraws, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            level = 2 * full_precision(images) - 1
            if "color" in self.policy:
                level = recolor(level, draws)
            if "translation" in self.policy:
                level = translate(level, draws.shift)
            if "cutout" in self.policy:
                level = cut_out(level, draws.cutout_center, torch.full_like(draws.brightness, self.cutout))
            augmented = ((level + 1) / 2).to(images.dtype)
        if draws.acts.all():
            return augmented
        return torch.where(on_device(draws.acts, images.device).view(-1, 1, 1, 1), augmented, images)


def recolor(images: Tensor, draws: DiffAugDraws) -> Tensor:
    """Change brightness, then saturation about each pixel's mean, then contrast about each image's (B, C, H, W)."""
    brightness, saturation, contrast = (
        like(strengths, images).view(-1, 1, 1, 1) for strengths in (draws.brightness, draws.saturation, draws.contrast)
    )
    images = images + brightness
    grey = images.mean(dim=1, keepdim=True)
    images = grey + saturation * (images - grey)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + contrast * (images - mean)


def translate(images: Tensor, shift: Tensor) -> Tensor:
    """Move images (B, C, H, W) by shares (B, 2), x and y, of their sides; 0 comes in from outside."""
    maps = torch.eye(2, 3, dtype=images.dtype).repeat(len(shift), 1, 1)
    maps[:, :, 2] = -2 * shift.to(images.dtype)  # coordinates go from -1 to 1
    grid = F.affine_grid(like(maps, images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
