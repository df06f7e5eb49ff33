"""Masks of one image as they are drawn, read, and carried from one grid of patches to another."""

import torch
from torch import Tensor

from perceptual_mae.images import Size
from perceptual_mae.masking import MASKINGS, num_hidden
from perceptual_mae.seeding import stream

KINDS = ("random", "block", "grid")
"""Of `MASKINGS`, those that need nothing but the grid."""


def draw(kind: str, grid: Size, ratio: float, seed: int) -> Tensor:
    """Return a mask (L,) of `KINDS`; ValueError for a ratio that leaves nothing visible."""
    return MASKINGS[kind](grid, num_hidden(grid[0] * grid[1], ratio), stream("evaluation mask", seed, 0))


def read_mask(text: str, grid: Size) -> Tensor:
    """Return the mask (L,) of a text of L characters, "1" for a hidden patch; ValueError for any other text."""
    if len(text) != grid[0] * grid[1] or set(text) - {"0", "1"}:
        raise ValueError(f"a mask is {grid[0] * grid[1]} characters, 1 for a hidden patch and 0 for a visible one")
    return torch.tensor([mark == "1" for mark in text])


def to_text(mask: Tensor) -> str:
    """Return a mask (L,) as a text, "1" for a hidden patch."""
    return "".join("1" if hidden else "0" for hidden in mask.tolist())


def nearest_mask(mask: Tensor, grid: Size, own: Size) -> Tensor:
    """Return the mask (L',) of a grid `own` that differs from a mask (L,) of `grid` in the smallest area.

    A patch is hidden where at least half of its area was. Where that leaves nothing hidden, or nothing visible, though
    the mask has both, the patch with the largest, or the smallest, hidden share is hidden, or visible.
    """
    if grid == own or bool(mask.all()) or not bool(mask.any()):
        return mask if grid == own else mask[:1].expand(own[0] * own[1]).clone()
    rows, columns = (overlap(sides, owns) for sides, owns in zip(grid, own, strict=True))
    shares = (rows @ mask.view(grid).double() @ columns.T).flatten()
    nearest = shares >= 0.5 - 1e-9
    if not bool(nearest.any()):
        nearest[shares.argmax()] = True
    if bool(nearest.all()):
        nearest[shares.argmin()] = False
    return nearest


def overlap(count: int, own: int) -> Tensor:
    """Return shares (own, count): how much of each of `own` equal parts of a line is in each of `count`."""
    edges, own_edges = (torch.arange(parts + 1, dtype=torch.float64) / parts for parts in (count, own))
    start = torch.maximum(own_edges[:-1, None], edges[None, :-1])
    end = torch.minimum(own_edges[1:, None], edges[None, 1:])
    return (end - start).clamp_min(0) * own
