"""Relative position bias of attention (Swin, BEiT): a learned number per head and offset between two tokens.

Shapes: B images, N tokens, L = h x w patches, V visible patches. A table (entries, heads) has (2h-1)(2w-1) entries for
offsets between patches, row offsets first and each from -(side - 1) up, then three for the class token: its attention
to patches, the patches' attention to it, and its attention to itself (the order of BEiT, and of timm).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from perceptual_mae.images import Size

CLASS_ENTRIES = 3


def num_entries(grid: Size) -> int:
    """Return the number of entries of a table for a grid of (rows, columns)."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + CLASS_ENTRIES


def entries_of_pairs(grid: Size) -> Tensor:
    """Return the entry of each pair of tokens, int64 (1+L, 1+L): queries by keys, class token first."""
    rows, columns = grid
    patches = torch.arange(rows * columns)
    row, column = patches // columns, patches % columns
    down, right = row[:, None] - row + rows - 1, column[:, None] - column + columns - 1
    last = num_entries(grid) - 1
    entries = F.pad(down * (2 * columns - 1) + right, (1, 0, 1, 0), value=last)
    entries[0, 1:], entries[1:, 0] = last - 2, last - 1
    return entries


def resize_table(table: Tensor, old: Size, new: Size) -> Tensor:
    """Return a table (entries, heads) for another grid: bicubic between offsets, the class token's unchanged."""
    if old == new:
        return table
    offsets = rearrange(table[:-CLASS_ENTRIES], "(h w) n -> n h w", h=2 * old[0] - 1)
    size = (2 * new[0] - 1, 2 * new[1] - 1)
    resized = F.interpolate(offsets[None], size=size, mode="bicubic", align_corners=False)[0]
    return torch.cat([rearrange(resized, "n h w -> (h w) n"), table[-CLASS_ENTRIES:]])


@dataclass(frozen=True)
class Pairs:
    """Pairs of tokens, by which blocks index their tables of relative position bias.

    entries: (N, N) as `entries_of_pairs`, or (B, N, N) of visible patches; grid: that of the images; table_grid: that
    which the tables were made for.
    """

    entries: Tensor
    grid: Size
    table_grid: Size

    def among(self, visible: Tensor) -> "Pairs":
        """Return the pairs of the class token and the visible patches (B, V)."""
        tokens = F.pad(visible + 1, (1, 0))
        return Pairs(self.entries[tokens[:, :, None], tokens[:, None]], self.grid, self.table_grid)

    def bias(self, table: Tensor) -> Tensor:
        """Return the bias of scores, (heads, N, N) or (B, heads, N, N), from a table (entries, heads)."""
        # An embedding sums gradients of one entry in a fixed order, which indexing with several threads does not.
        biases = F.embedding(self.entries, resize_table(table, self.table_grid, self.grid))
        return biases.movedim(-1, -3).contiguous()
