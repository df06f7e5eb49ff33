"""An encoder's blocks on large images: attention within windows, but for a few blocks that attend globally.

Shapes: B images, C channels, H x W pixels, p patch size, h x w patches, D width.
"""

import re
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from perceptual_mae.generator.encoder import Encoder
from perceptual_mae.generator.vit import Block, sincos_positions
from perceptual_mae.images import Size, patchify
from perceptual_mae.transfer.detection.positions import DecomposedPositions, PositionBias, TablePositions, table_bias

RelativePositions = Literal["decomposed", "tables", "none"]
AbsolutePositions = Literal["interpolated", "sincos"]


class WindowedTrunk(nn.Module):
    """Feature maps of an encoder without class token and final norm; its parts are used as they are, not copied.

    image_size: of the images in training, for which relative positions are made; others have them interpolated.
    taps: blocks, from 1, whose outputs are the maps. window: side in patches; blocks not in `global_blocks` attend
    within windows (None: there are none). relative_positions: "decomposed" has parameters of its own in each block
    (ViTDet), "tables" one table for the windows and one for the global blocks (MIMDet); an encoder that was pre-trained
    with tables must keep its own, under "none". positions: "interpolated" learns on, from the encoder's codes, and
    interpolates them; "sincos" are fixed codes of this very grid (MIMDet).

    Windows begin at the first patch. A grid that they do not fill is padded with zeros after the norm, and the padding
    is attended to, as in ViTDet. Raises ValueError for blocks that the encoder does not have, or tables that it has.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: Encoder,
        image_size: Size,
        *,
        taps: Sequence[int],
        window: int | None = 14,
        global_blocks: Sequence[int] = (),
        relative_positions: RelativePositions = "decomposed",
        positions: AbsolutePositions = "interpolated",
    ) -> None:
        super().__init__()
        self.depth = len(encoder.blocks)
        if foreign := [block for block in (*taps, *global_blocks) if not 1 <= block <= self.depth]:
            raise ValueError(f"blocks {foreign}: the encoder has blocks 1 to {self.depth}")
        if encoder.relative_positions and relative_positions != "none":
            raise ValueError("the encoder has tables of relative positions; relative_positions must be none")
        self.patch_size, self.taps, self.window = encoder.patch_size, tuple(taps), window
        self.width = encoder.width
        self.channels, self.strides = (encoder.width,) * len(taps), (encoder.patch_size,) * len(taps)
        self.register_buffer("mean", encoder.mean.clone())
        self.register_buffer("std", encoder.std.clone())
        grid = (image_size[0] // self.patch_size, image_size[1] // self.patch_size)
        self.position_grid = encoder.grid
        if positions == "sincos":
            self.position_grid = grid
            self.pos_embed = nn.Parameter(sincos_positions(grid, encoder.width)[:, 1:], requires_grad=False)
        else:
            self.pos_embed = nn.Parameter(encoder.pos_embed.detach()[:, 1:].clone())
        self.patch_embed, self.blocks = encoder.patch_embed, encoder.blocks
        self.windowed = [window is not None and block not in global_blocks for block in range(1, self.depth + 1)]
        self.table_grid = encoder.grid if encoder.relative_positions else None
        sides = [grid if window is None or not is_windowed else (window, window) for is_windowed in self.windowed]
        self.relative: nn.Module | None = None
        if relative_positions == "decomposed":
            head_width = encoder.width // encoder.num_heads
            self.relative = nn.ModuleList(DecomposedPositions(side, head_width) for side in sides)
        elif relative_positions == "tables":
            tables = {str(is_windowed): side for is_windowed, side in zip(self.windowed, sides, strict=True)}
            self.relative = nn.ModuleDict(
                {_TABLES[name]: TablePositions(side, encoder.num_heads) for name, side in tables.items()}
            )

    def forward(self, images: Tensor, drop_path_masks: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the maps (B, D, h, w) after the tapped blocks of images (B, C, H, W) in [0, 1].

        drop_path_masks (B, blocks, 2): see `Block`. Raises ValueError where patches do not fill the images.
        """
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"images of {height}x{width} pixels are not whole patches of {self.patch_size}; pad them")
        grid = (height // self.patch_size, width // self.patch_size)
        patches = patchify((images - self.mean) / self.std, self.patch_size).to(self.pos_embed.dtype)
        tokens = rearrange(self.patch_embed(patches), "b (h w) d -> b h w d", h=grid[0]) + self._positions(grid)
        maps: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks, start=1):
            assert isinstance(block, Block)
            masks = None if drop_path_masks is None else drop_path_masks[:, number - 1].to(tokens)
            window = self.window if self.windowed[number - 1] else None
            tokens = run_block(block, tokens, window, self._bias(number - 1), masks)
            if number in self.taps:
                maps[number] = tokens
        return tuple(maps[tap].permute(0, 3, 1, 2).contiguous() for tap in self.taps)

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter for layer decay: 0 positions and patches, i + 1 block i, depth + 1 others."""
        if name.startswith(("pos_embed", "patch_embed")):
            return 0
        match = re.match(r"(?:blocks|relative)\.(\d+)\.", name)
        return int(match[1]) + 1 if match else self.depth + 1

    def _positions(self, grid: Size) -> Tensor:
        """Return position codes (h, w, D) of a grid."""
        codes: Tensor = rearrange(self.pos_embed, "b (h w) d -> b d h w", h=self.position_grid[0])
        if grid != self.position_grid:
            codes = F.interpolate(codes, size=grid, mode="bicubic", align_corners=False)
        return codes[0].permute(1, 2, 0)

    def _bias(self, index: int) -> PositionBias | None:
        """Return the relative positions of a block, counted from 0."""
        if isinstance(self.relative, nn.ModuleList):
            return self.relative[index]
        if isinstance(self.relative, nn.ModuleDict):
            return self.relative[_TABLES[str(self.windowed[index])]]
        table_grid, block = self.table_grid, self.blocks[index]
        if table_grid is None:
            return None
        assert isinstance(block, Block)
        table = block.attn.relative_position_bias_table
        assert table is not None
        return lambda query, grid: table_bias(table, table_grid, grid)


_TABLES = {"True": "windows", "False": "global"}


def run_block(
    block: Block, tokens: Tensor, window: int | None, bias: PositionBias | None, drop_path_masks: Tensor | None
) -> Tensor:
    """Return tokens (B, h, w, D) after a block that attends within windows of a side in patches (None: globally).

    drop_path_masks (B, 2): see `Block`.
    """
    grid = (tokens.shape[1], tokens.shape[2])
    side = grid if window is None else (window, window)
    windows = cut_windows(block.norm1(tokens), side)
    attended = block.attn(windows, position_bias=None if bias is None else lambda query: bias(query, side))
    attention, mlp = (1.0, 1.0) if drop_path_masks is None else drop_path_masks[:, :, None, None, None].unbind(1)
    tokens = tokens + attention * block.ls1(join_windows(attended, side, grid))
    updated: Tensor = tokens + mlp * block.ls2(block.mlp(block.norm2(tokens)))
    return updated


def cut_windows(tokens: Tensor, side: Size) -> Tensor:
    """Cut tokens (B, h, w, D) into windows (B * windows, rows * columns, D), row-major, zeros at the ends."""
    bottom, right = -tokens.shape[1] % side[0], -tokens.shape[2] % side[1]
    padded = F.pad(tokens, (0, 0, 0, right, 0, bottom))
    return rearrange(padded, "b (i h) (j w) d -> (b i j) (h w) d", h=side[0], w=side[1])


def join_windows(windows: Tensor, side: Size, grid: Size) -> Tensor:
    """Put windows (B * windows, rows * columns, D) back on a grid (B, h, w, D): the inverse of `cut_windows`."""
    down, across = -(-grid[0] // side[0]), -(-grid[1] // side[1])
    tokens = rearrange(windows, "(b i j) (h w) d -> b (i h) (j w) d", i=down, j=across, h=side[0])
    return tokens[:, : grid[0], : grid[1]]
