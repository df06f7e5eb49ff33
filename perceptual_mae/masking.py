"""Masks of hidden patches: bool (B, L), True = hidden, the same number in every image of a batch."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from perceptual_mae.images import Size


def num_hidden(num_patches: int, ratio: float) -> int:
    """Number of patches to hide at a masking ratio in [0, 1); as MAE, the number of *visible* patches is rounded down.

    Rounding errors of the product have no effect: 100 patches at ratio 0.9 leave 10 visible, not int(9.999...) = 9.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"masking ratio {ratio} is outside [0, 1); use a fraction such as 0.75")
    visible = int(num_patches * (1 - ratio) + 1e-6)
    if visible == 0:
        largest = math.floor((1 - 1 / num_patches) * 1e4) / 1e4
        raise ValueError(f"masking ratio {ratio} leaves none of {num_patches} patches visible; use at most {largest:g}")
    return num_patches - visible


def random(grid: Size, num_hidden: int, generator: torch.Generator) -> Tensor:
    """Random masking: hides any `num_hidden` patches with equal probability (MAE).

    Returns a bool mask (L,) over a grid of (rows, columns).
    """
    order = torch.randperm(grid[0] * grid[1], generator=generator, device=generator.device)
    mask = torch.zeros_like(order, dtype=torch.bool)
    mask[order[:num_hidden]] = True
    return mask


def grid(grid: Size, num_hidden: int, generator: torch.Generator) -> Tensor:
    """Grid masking: visible patches are spread evenly, on a lattice with a random offset.

    Returns a bool mask (L,) over a grid of (rows, columns). At ratio 0.75 one patch of each 2 x 2 is visible (the
    grid-wise sampling of MAE). In between, lattices are filled in the order of a Bayer matrix, so that any number is
    spread as evenly as possible.
    """
    down, right = (int(torch.randint(side, (), generator=generator, device=generator.device)) for side in grid)
    row, column = _lattice_order(grid)
    order = ((row - down) % grid[0] * grid[1] + (column - right) % grid[1]).to(generator.device)
    mask = torch.ones(len(order), dtype=torch.bool, device=generator.device)
    mask[order[: len(order) - num_hidden]] = False
    return mask


@cache
def _lattice_order(grid: Size) -> tuple[Tensor, Tensor]:
    """Return rows and columns (L,) of the patches of a grid, in the order of a Bayer matrix."""
    row, column = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    rank = torch.zeros_like(row)
    for bit in range(max(grid).bit_length()):  # the lowest bit of a position weighs most: it makes the coarsest lattice
        cell = 2 * ((row >> bit & 1) ^ (column >> bit & 1)) + (row >> bit & 1)
        rank = 4 * rank + cell
    order = rank.flatten().argsort(stable=True)
    return row.flatten()[order], column.flatten()[order]


def block(
    grid: Size, num_hidden: int, generator: torch.Generator, *, smallest: int = 4, narrowest: float = 0.3
) -> Tensor:
    """Block masking: hides rectangles that may overlap (the block-wise masking of BEiT and MAE).

    Returns a bool mask (L,) over a grid of (rows, columns). The last rectangle is cut off in reading order where it
    would hide too many.

    Options:
        smallest: patches that a rectangle covers at least, or the number left to hide [ours]
        narrowest: smallest aspect ratio of a rectangle, in (0, 1]; the largest is its inverse [BEiT]

    Raises ValueError for options out of range.
    """
    if smallest < 1 or not 0 < narrowest <= 1:
        raise ValueError(f"block needs smallest >= 1 and 0 < narrowest <= 1, not {smallest} and {narrowest}")
    mask = np.zeros(grid, dtype=bool)  # for single patches several times as fast as a tensor
    left = num_hidden
    while left > 0:
        size, shape, top, start = torch.rand(4, generator=generator, device=generator.device).tolist()
        area = min(left, smallest) + size * max(0, left - smallest)
        aspect = narrowest ** (2 * shape - 1)
        height, width = (
            min(side, max(1, round(length)))
            for side, length in zip(grid, ((area * aspect) ** 0.5, (area / aspect) ** 0.5), strict=True)
        )
        first_row, first_column = int(top * (grid[0] - height + 1)), int(start * (grid[1] - width + 1))
        rectangle = mask[first_row : first_row + height, first_column : first_column + width]
        fresh_rows, fresh_columns = np.nonzero(~rectangle)  # in reading order
        rectangle[fresh_rows[:left], fresh_columns[:left]] = True
        left -= min(left, len(fresh_rows))
    return torch.from_numpy(mask).flatten().to(generator.device)


def attention(
    attention: Tensor,
    grid: Size,
    num_hidden: int,
    generator: torch.Generator,
    *,
    hide: Literal["attended", "unattended"] = "attended",
    temperature: float = 1.0,
) -> Tensor:
    """Attention masking: hides the patches to which the encoder's class token attends most, or least.

    attention: positive shares (L,) of the image's patches, of any sum. Returns a bool mask (L,) over a grid of (rows,
    columns). Patches are drawn without replacement, with probabilities in proportion to their share to the power
    1 / temperature, or -1 / temperature.

    Options:
        hide: "attended" hides the patches with most attention, "unattended" those with least [ours]
        temperature: randomness, 0 or more: at 0 exactly the first patches by attention are hidden, at high
            temperatures any are [ours]

    Raises ValueError for a temperature below 0.
    """
    if temperature < 0:
        raise ValueError(f"attention needs a temperature >= 0, not {temperature}")
    shares = attention.to(generator.device, torch.float64)
    scores = shares.clamp_min(torch.finfo(shares.dtype).tiny).log() * (1 if hide == "attended" else -1)
    if temperature > 0:  # Gumbel noise: the largest sums are such a draw
        scores = scores - temperature * torch.empty_like(scores).exponential_(generator=generator).log()
    mask = torch.zeros(grid[0] * grid[1], dtype=torch.bool, device=generator.device)
    mask[scores.argsort(descending=True, stable=True)[:num_hidden]] = True
    return mask


MASKINGS: dict[str, Callable[..., Tensor]] = {"random": random, "grid": grid, "block": block, "attention": attention}
"""kind -> function (grid, num_hidden, generator, *, options) returning one mask (L,).

A kind whose first parameter is called `attention` is given, before the others, the attention (L,) of the encoder's
class token to the patches of the whole image.
"""


def draw_masks(
    kind_function: Callable[..., Tensor],
    grid: Size,
    num_hidden: int,
    generators: Sequence[torch.Generator],
    attention: Tensor | None = None,
) -> Tensor:
    """Masks (B, L), one a sample, each from the sample's own generator.

    attention: (B, L) for a masking that needs it. Raises ValueError when a masking does not hide exactly
    `num_hidden` patches of the grid.
    """
    if attention is None:
        drawn = [kind_function(grid, num_hidden, generator) for generator in generators]
    else:
        samples = zip(attention, generators, strict=True)
        drawn = [kind_function(share, grid, num_hidden, generator) for share, generator in samples]
    masks = torch.stack(drawn)
    num_patches = grid[0] * grid[1]
    if masks.dtype != torch.bool or masks.shape[1:] != (num_patches,) or bool((masks.sum(dim=1) != num_hidden).any()):
        raise ValueError(f"a masking must return bool masks of {num_patches} patches with exactly {num_hidden} hidden")
    return masks


def visible_patches(mask: Tensor) -> Tensor:
    """Indices (B, visible) of the patches a mask (B, L) leaves visible, ascending, on the mask's device.

    Reads the mask's values, so a mask on an accelerator makes the host wait; one on the CPU does not. Raises ValueError
    unless every image has the same number hidden.
    """
    hidden = mask.sum(dim=1)
    if bool((hidden != hidden[0]).any()):
        raise ValueError(
            f"every image of a batch must have the same number of hidden patches, got {int(hidden.min())} to "
            f"{int(hidden.max())}; draw masks with `draw_masks`"
        )
    return (~mask).nonzero()[:, 1].view(len(mask), -1)
