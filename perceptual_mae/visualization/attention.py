"""Where an encoder's class token looks, as pictures: the mean of the heads, each head, and the patches that matter.

Shapes: B images, L patches in row-major order, H x W pixels.
"""

import torch
from torch import Tensor

from perceptual_mae.images import Size, mask_image

COLORS = "inferno"
"""A map of matplotlib's whose lightness rises steadily."""
DIMMED = 0.2
"""The brightness of patches that are not kept."""


def attention_columns(images: Tensor, attention: Tensor, grid: Size, keep: float) -> dict[str, Tensor]:
    """Return views (B, 3 or C, H, W) in [0, 1]: original, mean, each head, kept.

    images: (B, C, H, W) in [0, 1]; attention: (B, heads, 1+L), the class token's own share first, as
    `Encoder.class_attention` gives it. Each map is coloured from 0 to its own largest patch. `kept` shows the patches
    that hold the share `keep` of the mean's mass (see `kept_patches`) and dims the others.
    """
    patches = attention[..., 1:]
    mean = patches.mean(1)
    size = (images.shape[2], images.shape[3])
    columns = {"original": images, "mean": _heat(mean, grid, size)}
    columns |= {f"head {head + 1}": _heat(patches[:, head], grid, size) for head in range(patches.shape[1])}
    kept_pixels = mask_image(kept_patches(mean, keep), grid, size)
    return columns | {"kept": torch.lerp(images * DIMMED, images, kept_pixels)}


def patch_maps(attention: Tensor) -> Tensor:
    """Return what each patch attends to among the patches, uint8 (B, L, L): the mean of the heads, rows up to 255.

    attention: (B, heads, 1+L, 1+L), as `Encoder.last_attention` gives it. Each row goes from 0 to its own largest.
    """
    maps = attention[:, :, 1:, 1:].mean(1)
    share = maps / maps.amax(dim=2, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    return (share * 255).round().to(torch.uint8)


def kept_patches(attention: Tensor, keep: float) -> Tensor:
    """Return which patches (..., L) are kept: the fewest, strongest first, that hold the share `keep` of the mass.

    attention: non-negative (..., L), of any sum; keep: in (0, 1]. As DINO (Caron et al.) segments.
    """
    mass, order = attention.double().sort(dim=-1, descending=True, stable=True)
    mass = mass / mass.sum(dim=-1, keepdim=True)
    before = mass.cumsum(dim=-1) - mass  # a patch is needed while those before it do not hold enough
    needed = (before < keep - 1e-6) & (mass > 0)
    return torch.zeros_like(needed).scatter(-1, order, needed)


def _heat(maps: Tensor, grid: Size, size: Size) -> Tensor:
    """Colour maps (B, L) from 0 to the largest of each, and spread them over pixels: (B, 3, H, W)."""
    from matplotlib import colormaps  # slow to import, and only pictures need it

    share = maps / maps.amax(dim=1, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    levels = (share * 255).round().long().cpu()
    table = torch.tensor(colormaps[COLORS](range(256)), dtype=torch.float32)[:, :3]
    colors = table[levels].view(len(maps), *grid, 3).permute(0, 3, 1, 2)
    return torch.nn.functional.interpolate(colors, size=size, mode="nearest")
