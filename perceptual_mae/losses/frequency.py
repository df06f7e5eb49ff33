"""High-frequency loss: L1 distance of Laplacians over hidden patches."""

from typing import Literal

import torch
from torch import Tensor

from perceptual_mae.images import Pyramid, Size, constant, mask_image

LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


def high_frequency(
    fake: Pyramid, real: Pyramid, mask: Tensor, grid: Size, *, region: Literal["all", "masked"] = "masked"
) -> Tensor:
    """High frequencies: mean absolute difference of Laplacians of full-size images, over hidden pixels.

    fake, real: level 0 is (B, C, H, W) in [0, 1]; lower levels are not read. mask: (B, L) bool over a grid of (rows,
    columns). Each image is averaged over its own hidden area.

    Options:
        region: pixels that count: those of "masked" patches, or "all" [Improved MAE]

    Raises ValueError where fake and real differ in shape, or have a side of one pixel.
    """
    error = laplacian_error(fake[0], real[0])
    if region == "all":
        return error.mean()
    if region != "masked":
        raise ValueError(f"unknown region {region!r}; choose from: all, masked")
    hidden = mask_image(mask.to(error.device), grid, (error.shape[-2], error.shape[-1])).to(error.dtype)
    area = hidden.sum(dim=(1, 2, 3)).clamp(min=torch.finfo(error.dtype).tiny)
    return ((error * hidden).sum(dim=(1, 2, 3)) / (area * error.shape[1])).mean()


def laplacian_error(fake: Tensor, real: Tensor) -> Tensor:
    """Return |Laplacian(fake) - Laplacian(real)| (B, C, H, W), each channel by itself, on reflect-padded images."""
    if fake.shape != real.shape or min(fake.shape[-2:]) < 2:
        raise ValueError(f"images {tuple(fake.shape)} and {tuple(real.shape)} need one shape, of 2 x 2 pixels or more")
    from kornia.filters import filter2d  # here: the import takes a second, and no other loss needs it

    full = torch.promote_types(fake.dtype, torch.float32)
    with torch.autocast(fake.device.type, enabled=False):
        difference = fake.to(full) - real.to(full)  # the Laplacian is linear: one serves both images
        laplacian: Tensor = filter2d(difference, constant(LAPLACIAN, difference)[None], border_type="reflect")
        return laplacian.abs()
