"""Geometry of adaptive augmentation: all operations on an image composed into one affine map, and resampling by it.

Two executions share the maps. `move_fast` samples bilinearly. `move_exact` samples an image of twice the density, made
and undone by a wavelet filter, which keeps detail sharp and free of aliasing (Training GANs with Limited Data,
appendix B), at about fourteen times the cost.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from discriminators.augmentation.draws import Draws
from discriminators.augmentation.wavelets import REACH, double, halve, reflect
from discriminators.placement import like

SMALLEST_EXACT = 32
"""Side in pixels below which an image is too small for the wavelet filter, and is sampled bilinearly."""


def inverse_maps(draws: Draws, size: tuple[int, int]) -> Tensor:
    """Return affine maps from output to input pixels: (B, 2, 3), float64, for coordinates (x, y, 1) from -1 to 1.

    `size` (H, W) is that of the largest level, to whose whole pixels the integer shift is rounded. In these coordinates
    the map is the same at all levels of a pyramid. Rotations keep shapes on images that are not square.
    """
    height, width = size
    sides = torch.tensor([width, height], dtype=torch.float64)
    one = torch.ones_like(draws.scale)
    steps = (
        _scale(torch.where(draws.flip, -one, one), one),
        _rotate(draws.rotate90 * (torch.pi / 2)).round(),
        _translate((draws.shift * sides).round()),
        _scale(draws.scale, draws.scale),
        _rotate(draws.rotate_pre),
        _scale(draws.anisotropy, 1 / draws.anisotropy),
        _rotate(draws.rotate_post),
        _translate(draws.translate_fraction * sides),
    )
    forward = steps[0]
    for step in steps[1:]:
        forward = step @ forward
    to_pixels = torch.diag(torch.tensor([width / 2, height / 2, 1], dtype=torch.float64))
    inverse: Tensor = to_pixels.inverse() @ torch.linalg.inv(forward) @ to_pixels
    return inverse[:, :2]


def move_fast(images: Tensor, maps: Tensor) -> Tensor:
    """Resample images (B, C, H, W) bilinearly by maps (B, 2, 3); the image is mirrored beyond its border."""
    grid = F.affine_grid(like(maps, images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def move_exact(images: Tensor, maps: Tensor) -> Tensor:
    """Resample images (B, C, H, W) in [-1, 1] by maps (B, 2, 3), between wavelet filters.

    The image is mirrored beyond its border, up to one side less a pixel; further out is 0, mid-grey.
    """
    height, width = images.shape[-2:]
    if min(height, width) < SMALLEST_EXACT:
        return move_fast(images, maps)
    halves = torch.tensor([width / 2, height / 2, 1], dtype=torch.float64)
    maps = halves[:2, None] * maps / halves  # from pixels, to pixels, both from the centre
    # Samples that `halve` needs, every half pixel from 5/2 before the first pixel to 3 after the last.
    x, y = (torch.arange(-5, 2 * side + 5, dtype=torch.float64) / 2 - (side - 1) / 2 for side in (width, height))

    reach = maps[:, :, :2].abs() @ torch.stack([x.abs().max(), y.abs().max()]) + maps[:, :, 2].abs()
    margins = (reach.amax(0) - (halves[:2] - 0.5) + REACH).ceil().long().tolist()
    margin_x, margin_y = (min(margin, side - 1) for margin, side in zip(margins, (width, height), strict=True))
    samples = double(reflect(images, margin_x, margin_y))

    # Sample s of S is at (s - (S - 1) / 2) / 2 + 1/4 pixels from the centre.
    counts = torch.tensor([samples.shape[-1], samples.shape[-2]], dtype=torch.float64)
    maps = torch.cat([4 * maps[:, :, :2], 4 * maps[:, :, 2:] - 1], dim=2) / counts[:, None]
    maps, x, y = (like(tensor, images) for tensor in (maps, x, y))
    from_x, from_y, offset = (column.unsqueeze(1).unsqueeze(1) for column in maps.unbind(dim=2))
    grid = from_x * x.view(1, 1, -1, 1) + from_y * y.view(1, -1, 1, 1) + offset
    return halve(F.grid_sample(samples, grid, padding_mode="zeros", align_corners=False))


def _scale(x: Tensor, y: Tensor) -> Tensor:
    """Return matrices (B, 3, 3) that multiply by x and y (B,)."""
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], dim=1))


def _translate(offsets: Tensor) -> Tensor:
    """Return matrices (B, 3, 3) that add offsets (B, 2), x and y."""
    matrices = torch.eye(3, dtype=offsets.dtype).repeat(len(offsets), 1, 1)
    matrices[:, :2, 2] = offsets
    return matrices


def _rotate(angles: Tensor) -> Tensor:
    """Return rotations (B, 3, 3) by angles (B,) in radians, counterclockwise on a screen, where y points down."""
    matrices = torch.eye(3, dtype=torch.float64).repeat(len(angles), 1, 1)
    cosine, sine = angles.double().cos(), angles.double().sin()
    matrices[:, 0, 0], matrices[:, 0, 1] = cosine, sine
    matrices[:, 1, 0], matrices[:, 1, 1] = -sine, cosine
    return matrices
