"""The encoder: a vision transformer on visible patches only, or on whole images.

Shapes: B images, C channels, N tokens, L patches, V visible patches, D width.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from perceptual_mae.generator.relative_position_bias import Pairs, entries_of_pairs
from perceptual_mae.generator.vit import (
    Block,
    LayerNorm,
    PatchEmbed,
    Positions,
    initialise,
    register_positions,
    resize_positions,
    run_block,
)
from perceptual_mae.images import Size, patchify


class Encoder(nn.Module):
    """Vision transformer with a class token and position codes; parameters carry timm's names.

    Images come in [0, 1]; the data set's mean and standard deviation are buffers, so that a saved encoder is complete.
    """

    mean: Tensor
    std: Tensor
    pos_embed: Tensor
    entries: Tensor

    def __init__(
        self,
        image_size: Size,
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        layer_scale: float | None = None,
        positions: Positions = "sincos",
        relative_positions: bool = False,
    ) -> None:
        super().__init__()
        if channels < 1 or not len(mean) == len(std) == channels or min(std) <= 0:
            raise ValueError(
                f"images of {channels} channels need {channels} means and {channels} positive standard deviations, "
                f"got mean {list(mean)} and std {list(std)}"
            )
        self.channels, self.patch_size, self.width, self.num_heads = channels, patch_size, width, heads
        self.grid: Size = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.get_default_dtype()).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.get_default_dtype()).view(-1, 1, 1))
        register_positions(self, positions, self.grid, width)
        self.relative_positions = relative_positions
        if relative_positions:
            self.register_buffer("entries", entries_of_pairs(self.grid), persistent=False)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.patch_embed = PatchEmbed(channels, patch_size, width)
        table_grid = self.grid if relative_positions else None
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, qkv_bias=qkv_bias, layer_scale=layer_scale, grid=table_grid)
            for _ in range(depth)
        )
        self.norm = LayerNorm(width)
        self.apply(initialise)
        nn.init.normal_(self.cls_token, std=0.02)

    def forward(self, images: Tensor, drop_path_masks: Tensor | None = None) -> Tensor:
        """Tokens (B, 1+L, D) after the final norm, class token first, of whole images (B, C, H, W) in [0, 1].

        Any height and width that are multiples of the patch size are accepted: positions and relative positions are
        interpolated. `drop_path_masks` (B, blocks, 2): see `Block`.
        """
        return self.encode(self._checked(images), drop_path_masks=drop_path_masks)[0]

    def encode(
        self,
        images: Tensor,
        visible: Tensor | None = None,
        taps: Collection[int] = (),
        *,
        drop_path_masks: Tensor | None = None,
        replaced: tuple[Tensor, Tensor] | None = None,
        recompute: bool = False,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Tokens (B, 1+V, D) after the final norm, and the outputs of the blocks numbered in `taps`, not normalised.

        images: (B, C, H, W) in [0, 1]; visible: indices (B, V) of the only patches to encode, None for all. Blocks are
        numbered from 1; 0 is the input of the first. replaced: a mask (B, L) and the token (1, 1, D) that replaces,
        before positions are added, each patch that it hides. drop_path_masks (B, blocks, 2): see `Block`; recompute:
        see `run_block`. Raises ValueError for images of whole numbers.
        """
        if not images.is_floating_point():
            raise ValueError(f"expected float images in [0, 1], got {images.dtype}; divide bytes by 255")
        grid = self._grid_of(images)
        patches = patchify(self.normalise(images), self.patch_size).to(self.cls_token.dtype)
        positions = resize_positions(self.pos_embed, self.grid, grid)
        patch_positions = positions[:, 1:]
        if visible is not None:
            patches = patches.gather(1, visible[..., None].expand(-1, -1, patches.shape[-1]))
            # Indexing would sum the gradients of learned positions in any order; these indices never repeat.
            index = visible[..., None].expand(-1, -1, self.width)
            patch_positions = patch_positions.expand(images.shape[0], -1, -1).gather(1, index)
        class_token = (self.cls_token + positions[:, :1]).expand(images.shape[0], -1, -1)
        embedded = self.patch_embed(patches)
        if replaced is not None:
            mask, token = replaced
            embedded = torch.where(mask[..., None], token.to(embedded.dtype), embedded)
        tokens = torch.cat([class_token, embedded + patch_positions], dim=1)
        tapped = {0: tokens} if 0 in taps else {}
        pairs = self._pairs(grid, visible)
        if drop_path_masks is not None:
            if drop_path_masks.shape != (images.shape[0], len(self.blocks), 2):
                expected = (images.shape[0], len(self.blocks), 2)
                raise ValueError(f"expected drop_path_masks {expected}, got {tuple(drop_path_masks.shape)}")
            drop_path_masks = drop_path_masks.to(tokens)
        for number, block in enumerate(self.blocks, start=1):
            block_masks = () if drop_path_masks is None else (drop_path_masks[:, number - 1],)
            tokens = run_block(block, tokens, *block_masks, pairs=pairs, recompute=recompute)
            if number in taps:
                tapped[number] = tokens
        return self.norm(tokens), tapped

    def intermediate(self, images: Tensor, blocks: Sequence[int], *, norm: bool = False) -> tuple[Tensor, ...]:
        """Feature maps (B, D, H/p, W/p) of whole images after the numbered blocks, in the order of `blocks`.

        images: (B, C, H, W) in [0, 1], as `forward` takes them; all patches are visible, and the class token is left
        out. Blocks count from 1, and -1 is the last. norm: apply the encoder's final norm to each. Raises ValueError
        for a block that the encoder does not have.
        """
        depth = len(self.blocks)
        numbers = [depth + 1 + block if block < 0 else block for block in blocks]
        if foreign := [block for block, number in zip(blocks, numbers, strict=True) if not 1 <= number <= depth]:
            raise ValueError(f"blocks {foreign}: the encoder has blocks 1 to {depth} (-1 is the last)")
        _, tapped = self.encode(self._checked(images), taps=set(numbers))
        rows, columns = self._grid_of(images)
        maps = (self.norm(tapped[number]) if norm else tapped[number] for number in numbers)
        return tuple(each[:, 1:].transpose(1, 2).unflatten(2, (rows, columns)) for each in maps)

    def class_attention(self, images: Tensor) -> Tensor:
        """Attention of the last block's class token in whole images: (B, heads, 1+L), class token first, rows sum to 1.

        images: (B, C, H, W) in [0, 1], as `forward` takes them; all patches are visible.
        """
        return self.last_attention(images)[:, :, 0]

    def last_attention(self, images: Tensor) -> Tensor:
        """Attention of the last block in whole images: (B, heads, 1+L, 1+L), class token first, rows sum to 1.

        images: (B, C, H, W) in [0, 1], as `forward` takes them; all patches are visible.
        """
        last, previous = self.blocks[-1], len(self.blocks) - 1
        assert isinstance(last, Block)
        _, tapped = self.encode(images, taps=(previous,))
        return last.attention(tapped[previous], self._pairs(self._grid_of(images), None))

    def _checked(self, images: Tensor) -> Tensor:
        """Return the images (B, C, H, W); raise ValueError for channels or sides that the patches do not fit."""
        height, width = images.shape[-2:]
        if images.dim() != 4 or images.shape[1] != self.channels or height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"expected images (B, {self.channels}, H, W) with H and W multiples of patch_size {self.patch_size}, "
                f"got {tuple(images.shape)}; resize or crop them first"
            )
        return images

    def _grid_of(self, images: Tensor) -> Size:
        return (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)

    def _pairs(self, grid: Size, visible: Tensor | None) -> Pairs | None:
        """Return the pairs of tokens on a grid, or of its visible patches (B, V); None without relative positions."""
        if not self.relative_positions:
            return None
        entries = self.entries if grid == self.grid else entries_of_pairs(grid).to(self.entries.device)
        pairs = Pairs(entries, grid, self.grid)
        return pairs if visible is None else pairs.among(visible)

    def normalise(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1], normalised by the data set's mean and standard deviation."""
        return (images - self.mean) / self.std

    def denormalise(self, images: Tensor) -> Tensor:
        """The inverse of `normalise`: images (B, C, H, W) on the [0, 1] scale, not clamped."""
        return images * self.std + self.mean

    def export_state_dict(self) -> dict[str, Tensor]:
        """State under timm's names, the same for every generator: without the mean and std of the data set."""
        return {name: value for name, value in self.state_dict().items() if name not in ("mean", "std")}


NO_WEIGHT_DECAY = ("cls_token", "mask_token", "pos_embed", "relative_position_bias_table")
"""Last parts of names that do not decay, whatever their shape (MAE, BEiT)."""
