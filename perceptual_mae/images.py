"""The image contract: float32 (B, C, H, W) in [0, 1], cut into patches, pooled into pyramids, put back together.

Shapes: B images, C channels, H x W pixels, p patch size, L = (H/p)(W/p) patches in row-major order.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Pyramid = tuple[Tensor, ...]
"""Images of the same content, largest first, each half the size of the one before."""

Size = tuple[int, int]
"""Height and width in pixels (or rows and columns of patches)."""


@dataclass(frozen=True)
class ImageFormat:
    """Format of images: size in pixels, and mean and standard deviation of each channel in [0, 1]."""

    size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        return len(self.mean)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images (B, C, H, W) into patch vectors (B, L, p*p*C), each in the order (row, column, channel)."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(patches: Tensor, patch_size: int, grid: Size) -> Tensor:
    """Put patch vectors (B, L, p*p*C) back on a grid of (rows, columns): the inverse of `patchify`."""
    rows, columns = grid
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, w=columns, p=patch_size, q=patch_size)


def resolutions(size: Size) -> tuple[Size, ...]:
    """List the sizes of a full pyramid, largest first: the shorter side is halved while it is at least 8 pixels.

    Raises ValueError where a side would stop being whole on the way down (Perceptual MAE section 3.3; 224 -> ... -> 7).
    """
    sizes = [size]
    while min(sizes[-1]) >= 8:
        height, width = sizes[-1]
        if height % 2 or width % 2:
            raise ValueError(
                f"image size {size[0]}x{size[1]} cannot be halved down to less than 8 pixels "
                f"(stuck at {height}x{width}); use a size such as 32, 64, 96, 128, 192 or 224"
            )
        sizes.append((height // 2, width // 2))
    return tuple(sizes)


def pyramid_sizes(size: Size) -> tuple[Size, ...]:
    """List the sizes of a full pyramid, or the one size where it cannot be halved: some networks need no more."""
    try:
        return resolutions(size)
    except ValueError:
        return (size,)


def pyramid(images: Tensor, levels: int) -> Pyramid:
    """Pool images (B, C, H, W) into `levels` images, largest first, by 2x2 averaging (no aliasing, unlike resizing)."""
    levels_so_far = [images]
    while len(levels_so_far) < levels:
        levels_so_far.append(F.avg_pool2d(levels_so_far[-1], 2))
    return tuple(levels_so_far)


def mask_image(mask: Tensor, grid: Size, size: Size) -> Tensor:
    """Spread a mask (B, L) over pixels: float (B, 1, H, W), 1 = hidden; sizes below the grid get the hidden share."""
    image = mask.float().view(len(mask), 1, *grid)
    if size[0] < grid[0] or size[1] < grid[1]:
        return F.interpolate(image, size=size, mode="area")
    return F.interpolate(image, size=size, mode="nearest")


def composite(images: Tensor, reconstruction: Tensor, hidden: Tensor) -> Tensor:
    """Fill the hidden pixels of `images` from `reconstruction`, both (B, C, H, W); hidden: (B, 1, H, W), 1 = hidden."""
    return torch.lerp(images, reconstruction, hidden)


def to_uint8(images: Tensor) -> Tensor:
    """Clamp images (..., H, W) to [0, 1] and round them to uint8, 0 to 255."""
    return images.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)


def constant(values: Any, images: Tensor) -> Tensor:
    """Return nested tuples of numbers as a tensor like `images` in dtype and device; it must not be changed.

    It is sent to a device once: each time, the host would wait for it.
    """
    return _sent(values, images.dtype, images.device)


@cache
def _sent(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it is kept for trainings, too
        return torch.tensor(values, dtype=dtype, device=device)


def check_unit_range(images: Tensor, name: str) -> None:
    """Raise ValueError, with the range of values, unless `images` (any shape) are in [0, 1]; waits for the device."""
    low, high = (float(bound) for bound in images.detach().aminmax())
    if not (low >= -1e-4 and high <= 1 + 1e-4):
        raise ValueError(
            f"{name} must be in [0, 1], but has values in [{low:.3g}, {high:.3g}]; clamp or rescale it first"
        )
