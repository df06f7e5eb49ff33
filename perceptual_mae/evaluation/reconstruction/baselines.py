"""What one gets without learning: three fillings of hidden patches from the visible pixels alone.

All take images (B, C, H, W) in [0, 1], masks (B, L) with True = hidden and the patch size, and return images with every
hidden patch filled and the visible ones kept.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from perceptual_mae.images import Size, patchify, unpatchify


def mean_color(images: Tensor, mask: Tensor, patch_size: int) -> Tensor:
    """Fill with the mean colour of all visible pixels of the image."""
    colors = _patch_colors(images, patch_size)
    visible = (~mask).to(images.dtype).unsqueeze(-1)
    mean = (colors * visible).sum(1, keepdim=True) / visible.sum(1, keepdim=True).clamp_min(1)
    return _fill(images, mask, patch_size, _flat_patches(mean.expand_as(colors), patch_size))


def nearest_patch(images: Tensor, mask: Tensor, patch_size: int) -> Tensor:
    """Fill with a copy of the nearest visible patch (by the distance of patch centres; the first of equals)."""
    patches = patchify(images, patch_size)
    distance = _distances(_grid(images, patch_size)).to(images.device)
    nearest = distance.masked_fill(mask.unsqueeze(1), float("inf")).argmin(2)
    copied = patches.gather(1, nearest.unsqueeze(-1).expand_as(patches))
    return _fill(images, mask, patch_size, copied)


def inverse_distance(images: Tensor, mask: Tensor, patch_size: int) -> Tensor:
    """Fill with the mean colours of the visible patches, weighted by 1 / distance squared (Shepard)."""
    colors = _patch_colors(images, patch_size)
    distance = _distances(_grid(images, patch_size)).to(images)
    weights = distance.clamp_min(1e-6).pow(-2) * (~mask).unsqueeze(1)
    mixed = weights @ colors / weights.sum(2, keepdim=True).clamp_min(1e-12)
    return _fill(images, mask, patch_size, _flat_patches(mixed, patch_size))


BASELINES = {"mean_color": mean_color, "nearest_patch": nearest_patch, "inverse_distance": inverse_distance}


def _grid(images: Tensor, patch_size: int) -> Size:
    return images.shape[2] // patch_size, images.shape[3] // patch_size


def _patch_colors(images: Tensor, patch_size: int) -> Tensor:
    """Return each patch's mean colour (B, L, C)."""
    return F.avg_pool2d(images, patch_size).flatten(2).mT


def _flat_patches(colors: Tensor, patch_size: int) -> Tensor:
    """Return patches (B, L, p*p*C) of one colour each."""
    return colors.unsqueeze(2).expand(-1, -1, patch_size**2, -1).flatten(2)


def _distances(grid: Size) -> Tensor:
    """Return the distances between all patch centres (L, L), in patches."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    centers = torch.stack([rows.flatten(), columns.flatten()], 1).float()
    return torch.cdist(centers, centers)


def _fill(images: Tensor, mask: Tensor, patch_size: int, filling: Tensor) -> Tensor:
    patches = torch.where(mask.unsqueeze(-1), filling, patchify(images, patch_size))
    return unpatchify(patches, patch_size, _grid(images, patch_size))
