"""Pixel losses: absolute and squared error, over the whole image or its hidden part."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from perceptual_mae.images import Pyramid, Size, mask_image

Region = Literal["all", "masked"]


def l1(
    fake: Pyramid, real: Pyramid, mask: Tensor, grid: Size, *, region: Region = "all", low_levels: float = 0.1
) -> Tensor:
    """Mean absolute error of pixels, of the full-size level and, with a small weight, of the lower ones.

    fake, real: levels (B, C, H, W) of any range, largest first; mask: (B, L) bool over a grid of (rows, columns). Each
    level is averaged by itself. Perceptual MAE compares the full size alone; lower levels that no other term anchors
    need a small weight.

    Options:
        region: pixels that count: "all", or those of "masked" patches [paper]
        low_levels: weight of each lower level of the pyramid against the full-size level; the paper's is 0 [ours]

    Raises ValueError where the levels of fake and real differ in number or shape.
    """
    return _distance(fake, real, mask, grid, region, low_levels, torch.abs)


def mse(
    fake: Pyramid, real: Pyramid, mask: Tensor, grid: Size, *, region: Region = "masked", low_levels: float = 0.1
) -> Tensor:
    """Mean squared error of pixels, of the full-size level and, with a small weight, of the lower ones.

    fake, real: levels (B, C, H, W) of any range, largest first; mask: (B, L) bool over a grid of (rows, columns). Each
    level is averaged by itself.

    Options:
        region: pixels that count: "all", or those of "masked" patches [MAE]
        low_levels: weight of each lower level of the pyramid against the full-size level; the paper's is 0 [ours]

    Raises ValueError where the levels of fake and real differ in number or shape.
    """
    return _distance(fake, real, mask, grid, region, low_levels, torch.square)


def _distance(
    fake: Pyramid,
    real: Pyramid,
    mask: Tensor,
    grid: Size,
    region: Region,
    low_levels: float,
    penalty: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return the weighted sum over levels (B, C, H, W) of the mean of penalty(fake - real)."""
    fake_shapes, real_shapes = ([tuple(level.shape) for level in levels] for levels in (fake, real))
    if fake_shapes != real_shapes:
        raise ValueError(
            f"fake levels {fake_shapes} do not match real levels {real_shapes}; pool both to the same sizes"
        )
    if region not in ("all", "masked"):
        raise ValueError(f"unknown region {region!r}; choose from: all, masked")
    if low_levels < 0:
        raise ValueError(f"low_levels must be 0 or more, not {low_levels}")

    used = len(fake) if low_levels else 1
    errors = [
        _level_error(fake_level, real_level, mask if region == "masked" else None, grid, penalty)
        for fake_level, real_level in zip(fake[:used], real[:used], strict=True)
    ]
    total = errors[0]
    for error in errors[1:]:
        total = total + low_levels * error
    return total


def _level_error(
    fake: Tensor, real: Tensor, mask: Tensor | None, grid: Size, penalty: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the mean of penalty(fake - real) over a level (B, C, H, W), or its pixels that the mask (B, L) hides."""
    full = torch.promote_types(fake.dtype, torch.float32)
    error = penalty(fake.to(full) - real.to(full))  # (B, C, H, W)
    if mask is None:
        return error.mean()
    height, width = fake.shape[-2:]
    hidden = mask_image(mask.to(fake.device), grid, (height, width))  # (B, 1, H, W)
    # Each image by its own hidden area, so that a batch is the mean of its images whatever their masks; an image with
    # nothing hidden adds nothing.
    area = hidden.sum(dim=(1, 2, 3)).clamp(min=torch.finfo(hidden.dtype).tiny)
    return ((error * hidden).sum(dim=(1, 2, 3)) / (area * fake.shape[1])).mean()
