"""Colour, noise and cutout operations of adaptive augmentation, on pixels in [-1, 1]."""

import torch
import torch.nn.functional as F
from torch import Tensor

from discriminators.augmentation.draws import Draws
from discriminators.placement import like


def color_matrices(draws: Draws) -> Tensor:
    """Return the composed colour operations of each image: matrices (B, 3, 4), float64, for (red, green, blue, 1).

    Brightness adds and contrast multiplies; then colours are mirrored along the grey axis (luma flip), rotated about it
    (hue) and scaled away from it (saturation).
    """
    identity = torch.eye(3, dtype=torch.float64)
    grey = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    luma_flip = identity - 2 * grey * draws.luma_flip.double().view(-1, 1, 1)
    cosine, sine = draws.hue.cos().view(-1, 1, 1), draws.hue.sin().view(-1, 1, 1)
    # Rodrigues' formula about (1, 1, 1) / sqrt(3).
    across = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64) / 3**0.5
    hue = grey + cosine * (identity - grey) + sine * across
    saturation = grey + (identity - grey) * draws.saturation.view(-1, 1, 1)
    linear = saturation @ hue @ luma_flip * draws.contrast.view(-1, 1, 1)
    return torch.cat([linear, linear.sum(dim=2, keepdim=True) * draws.brightness.view(-1, 1, 1)], dim=2)


def recolor(images: Tensor, matrices: Tensor) -> Tensor:
    """Apply matrices (B, 3, 4) to images (B, 3, H, W); grey images (B, 1, H, W) get the mean of an RGB result."""
    matrices = like(matrices, images)
    linear, offset = matrices[:, :, :3], matrices[:, :, 3:]
    if images.shape[1] == 1:
        linear, offset = linear.sum(dim=2, keepdim=True).mean(dim=1, keepdim=True), offset.mean(dim=1, keepdim=True)
    return torch.baddbmm(offset, linear, images.flatten(2)).view(images.shape)


def noise_fields(draws: Draws, shape: tuple[int, int, int]) -> Tensor:
    """Return the noise (B, C, H, W) that is added at the largest level, of shape (C, H, W), on the CPU.

    It comes from each image's own seed, so that real and fake of one draw get the same.
    """
    fields = torch.zeros(len(draws), *shape)
    for field, std, seed in zip(fields, draws.noise.tolist(), draws.noise_seed.tolist(), strict=True):
        if std > 0:
            generator = torch.Generator().manual_seed(seed)
            field.copy_(torch.randn(shape, generator=generator) * std)
    return fields


def pool_to(fields: Tensor, size: tuple[int, int]) -> Tensor:
    """Return fields (B, C, H, W) average-pooled to a level's size (H', W'), as in a pyramid of noisy images."""
    return fields if fields.shape[-2:] == size else F.adaptive_avg_pool2d(fields, size)


def cut_out(images: Tensor, centers: Tensor, sizes: Tensor) -> Tensor:
    """Set a rectangle of each image (B, C, H, W) to 0, mid-grey: a square in fractions of the image's sides.

    centers: (B, 2), x and y from the top left corner; sizes: (B,), both on the CPU.
    """
    inside = []
    for axis, side in enumerate((images.shape[-1], images.shape[-2])):
        positions = (torch.arange(side, dtype=torch.float64) + 0.5) / side
        inside.append((positions - centers[:, axis, None]).abs() < sizes[:, None] / 2)
    hole = inside[1][:, None, :, None] & inside[0][:, None, None, :]
    return images * like(~hole, images)
