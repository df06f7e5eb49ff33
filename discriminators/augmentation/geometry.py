"""Geometry of adaptive augmentation: all of an image's moves composed into one affine map, and images sampled by it.

Two executions share the maps. `move_fast` samples bilinearly. `move_exact` samples an image of twice the density, made
and undone by a wavelet filter, which keeps detail sharp and free of aliasing (Training GANs with Limited Data,
appendix B), at about fourteen times the price.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from discriminators.augmentation.draws import Draws
from discriminators.augmentation.wavelets import REACH, double, halve, reflect

SMALLEST_EXACT = 32
"""Below this side an image is too small for the wavelet's reach and is sampled bilinearly."""


def inverse_maps(draws: Draws, size: tuple[int, int]) -> Tensor:
    """Return where each output pixel comes from: (B, 2, 3), float64, for coordinates (x, y, 1) from -1 to 1.

    `size` (H, W) is that of the largest level, whose whole pixels the integer shift keeps to. In these coordinates
    the map is the same at all levels of a pyramid. Rotations keep the shape of things on images that are not square.
    """
    height, width = size
    sides = torch.tensor([width, height], dtype=torch.float64)
    one = torch.ones_like(draws.zoom)
    steps = (
        _scaling(torch.where(draws.flip, -one, one), one),
        _turning(draws.quarter_turns * (torch.pi / 2)).round(),
        _moving((draws.shift * sides).round()),
        _scaling(draws.zoom, draws.zoom),
        _turning(draws.turn_before),
        _scaling(draws.stretch, 1 / draws.stretch),
        _turning(draws.turn_after),
        _moving(draws.slide * sides),
    )
    forward = steps[0]
    for step in steps[1:]:
        forward = step @ forward
    to_pixels = torch.diag(torch.tensor([width / 2, height / 2, 1], dtype=torch.float64))
    inverse: Tensor = to_pixels.inverse() @ torch.linalg.inv(forward) @ to_pixels
    return inverse[:, :2]


def move_fast(images: Tensor, maps: Tensor) -> Tensor:
    """Sample images (B, C, H, W) bilinearly at maps (B, 2, 3); beyond the border lies the mirrored image."""
    grid = F.affine_grid(maps.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def move_exact(images: Tensor, maps: Tensor) -> Tensor:
    """Sample images (B, C, H, W) in [-1, 1] at maps (B, 2, 3) between wavelet filters.

    Beyond the border lies the mirrored image, up to one side less a pixel; further out is 0, mid-grey.
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

    # Sample s of S stands at (s - (S - 1) / 2) / 2 + 1/4 pixels from the centre.
    counts = torch.tensor([samples.shape[-1], samples.shape[-2]], dtype=torch.float64)
    maps = torch.cat([4 * maps[:, :, :2], 4 * maps[:, :, 2:] - 1], dim=2) / counts[:, None]
    maps, x, y = (tensor.to(images) for tensor in (maps, x, y))
    from_x, from_y, offset = (column.unsqueeze(1).unsqueeze(1) for column in maps.unbind(dim=2))
    grid = from_x * x.view(1, 1, -1, 1) + from_y * y.view(1, -1, 1, 1) + offset
    return halve(F.grid_sample(samples, grid, padding_mode="zeros", align_corners=False))


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], dim=1))


def _moving(offsets: Tensor) -> Tensor:
    matrices = torch.eye(3, dtype=offsets.dtype).repeat(len(offsets), 1, 1)
    matrices[:, :2, 2] = offsets
    return matrices


def _turning(angles: Tensor) -> Tensor:
    """Return counterclockwise rotations as they look on a screen, where y points down."""
    matrices = torch.eye(3, dtype=torch.float64).repeat(len(angles), 1, 1)
    cosine, sine = angles.double().cos(), angles.double().sin()
    matrices[:, 0, 0], matrices[:, 0, 1] = cosine, sine
    matrices[:, 1, 0], matrices[:, 1, 1] = -sine, cosine
    return matrices
