"""Relative positions on large grids: decomposed (MViTv2, ViTDet), in one table (BEiT, MIMDet), or those of an encoder.

Each is called with queries (B, heads, N, d) of a grid of N tokens, without class token, and the grid (rows, columns),
and returns what is added to the scores, (heads, N, N) or (B, heads, N, N). Grids other than the one that the parameters
were made for have them interpolated.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from perceptual_mae.generator.relative_position_bias import CLASS_ENTRIES, Pairs, entries_of_pairs, num_entries
from perceptual_mae.images import Size

PositionBias = Callable[[Tensor, Size], Tensor]


class DecomposedPositions(nn.Module):
    """A learned vector for each offset of rows and one for each of columns, multiplied with the query; zero at first.

    All heads share the vectors (ViTDet, as MViTv2). The query is not scaled.
    """

    def __init__(self, grid: Size, head_width: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(2 * grid[0] - 1, head_width))
        self.columns = nn.Parameter(torch.zeros(2 * grid[1] - 1, head_width))

    def forward(self, query: Tensor, grid: Size) -> Tensor:
        queries = rearrange(query, "b n (h w) d -> b n h w d", h=grid[0])
        rows, columns = _vectors(self.rows, grid[0]).to(query.dtype), _vectors(self.columns, grid[1]).to(query.dtype)
        by_row = einsum(queries, rows, "b n h w d, h k d -> b n h w k")
        by_column = einsum(queries, columns, "b n h w d, w k d -> b n h w k")
        return rearrange(by_row[..., :, None] + by_column[..., None, :], "b n h w k l -> b n (h w) (k l)")


class TablePositions(nn.Module):
    """A number for each offset and head, zero at first, in a table (offsets, heads) that several blocks share."""

    def __init__(self, grid: Size, heads: int) -> None:
        super().__init__()
        self.grid = grid
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_entries(grid) - CLASS_ENTRIES, heads))

    def forward(self, query: Tensor, grid: Size) -> Tensor:
        return table_bias(F.pad(self.relative_position_bias_table, (0, 0, 0, CLASS_ENTRIES)), self.grid, grid)


def table_bias(table: Tensor, table_grid: Size, grid: Size) -> Tensor:
    """Return the bias (heads, N, N) on a grid, from a table (entries, heads) with BEiT's entries of the class token."""
    entries = entries_of_pairs(grid).to(table.device)[1:, 1:]
    return Pairs(entries, grid, table_grid).bias(table)


def _vectors(table: Tensor, side: int) -> Tensor:
    """Return the vectors (queries, keys, d) of a side's pairs, from a table (2 * side - 1, d) or one interpolated."""
    if len(table) != 2 * side - 1:
        table = F.interpolate(table.T[None], size=2 * side - 1, mode="linear")[0].T
    places = torch.arange(side, device=table.device)
    # An embedding sums gradients of one entry in a fixed order, which indexing with several threads does not.
    return F.embedding(places[:, None] - places + side - 1, table)
