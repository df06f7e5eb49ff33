"""The half of the generator that paints: from encoded visible patches to images, with skips and RGB heads as options.

Shapes: B images, C channels, L patches, V visible patches, D encoder width, d decoder width.
"""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from perceptual_mae.heads import HeadForm, RgbHead, head_block
from perceptual_mae.images import Pyramid, Size, unpatchify
from perceptual_mae.skips import Skip
from perceptual_mae.vit import Block, LayerNorm, Positions, give_positions, initialise

logger = logging.getLogger(__name__)


class Decoder(nn.Module):
    """Transformer decoder of MAE; with `taps` and `levels` that of MSG-MAE.

    taps: encoder block for each decoder block from the second on, or none. levels: images to write, each half the size
    of the one before. head_form: see `RgbHead`. mask_token: False where the encoder gives tokens for all patches.
    """

    pos_embed: Tensor
    mask_token: nn.Parameter | None

    def __init__(
        self,
        encoder_width: int,
        channels: int,
        grid: Size,
        *,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        taps: Sequence[int] = (),
        own_projections: bool = True,
        levels: int = 1,
        head_form: HeadForm = "native",
        qkv_bias: bool = True,
        layer_scale: float | None = None,
        positions: Positions = "sincos",
        mask_token: bool = True,
    ) -> None:
        super().__init__()
        self.grid, self.patch_size, self.taps = grid, patch_size, tuple(taps)
        self.embed = nn.Linear(encoder_width, width)
        self.register_parameter("mask_token", nn.Parameter(torch.empty(1, 1, width)) if mask_token else None)
        give_positions(self, positions, grid, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, qkv_bias=qkv_bias, layer_scale=layer_scale) for _ in range(depth)
        )
        self.norm = LayerNorm(width)
        self.pred = nn.Linear(width, channels * patch_size**2)
        self.skips = nn.ModuleList(Skip(encoder_width, width, own_projection=own_projections) for _ in self.taps)
        self.heads = nn.ModuleList(
            RgbHead(width, channels, grid, patch_size, 2**level, head_form) for level in range(1, levels)
        )
        if levels > max(2, depth):
            logger.warning(
                "%d pyramid levels on %d decoder blocks: several RGB heads share block 1; decoder_depth %d avoids it",
                *(levels, depth, levels),
            )
        self.apply(initialise)
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, tapped: Mapping[int, Tensor], visible: Tensor) -> tuple[Pyramid, Tensor]:
        """Images in the generator's normalised space, largest first, and the decoder's input (B, 1+L, d).

        tokens: (B, 1+V, D) of the encoder; tapped: encoder block -> (B, 1+V, D); visible: patch indices (B, V).
        """
        latent = tokens = self.place(self.embed(tokens), visible)
        outputs: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            if self.taps and index > 0:
                skip = self.skips[index - 1]
                assert isinstance(skip, Skip)
                tokens = skip(tokens, self.place(skip.narrow(tapped[self.taps[index - 1]], self.embed), visible))
            tokens = block(tokens)
            outputs.append(tokens)
        patches: Tensor = self.pred(self.norm(tokens)[:, 1:])
        images = [unpatchify(patches, self.patch_size, self.grid)]
        for level, head in enumerate(self.heads, start=1):
            images.append(head(outputs[head_block(level, len(self.blocks)) - 1]))
        return tuple(image.to(torch.promote_types(image.dtype, torch.float32)) for image in images), latent

    def place(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """All tokens (B, 1+L, d): visible ones (B, 1+V, d) in their places, mask tokens elsewhere, plus positions."""
        if self.mask_token is None:
            return tokens + self.pos_embed
        index = visible[..., None].expand(-1, -1, tokens.shape[-1])
        hidden = self.mask_token.to(tokens.dtype).expand(len(tokens), self.grid[0] * self.grid[1], -1)
        return torch.cat([tokens[:, :1], hidden.scatter(1, index, tokens[:, 1:])], dim=1) + self.pos_embed
