"""The decoder: from encoded visible patches to images, with skips and RGB heads as options.

Shapes: B images, C channels, L patches, V visible patches, D encoder width, d decoder width.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from perceptual_mae.generator.cross_attention import CrossBlock
from perceptual_mae.generator.rgb_heads import HeadForm, RgbHead, head_block
from perceptual_mae.generator.skips import Skip
from perceptual_mae.generator.vit import Block, LayerNorm, Positions, initialise, register_positions, run_block
from perceptual_mae.images import Pyramid, Size, unpatchify

logger = logging.getLogger(__name__)

DecoderAttention = Literal["self", "cross"]
"""Whether all tokens of a decoder attend to each other, or queries to visible tokens alone."""
ClassToken = Literal["encoder", "constant"]
"""Whose class token a decoder reads: the encoder's, or a learned one of its own."""


class Decoder(nn.Module):
    """Transformer decoder of MAE; with `taps` and `levels` that of MSG-MAE.

    taps: encoder block for each decoder block from the second on, or none. levels: images to write, each half the size
    of the one before. head_form: see `RgbHead`. mask_token: False where the encoder gives tokens for all patches.
    attention: with "cross" (CrossMAE) each patch is a query, mask token plus position, that attends to the visible
    tokens in every block and to no other query; a tap joins the visible tokens of its block. class_token: "constant"
    puts a learned token in the place of the encoder's class token. Raises ValueError for "cross" without a mask token,
    and for "constant" with taps, which would bring the encoder's class token in again.
    """

    pos_embed: Tensor
    mask_token: nn.Parameter | None
    cls_token: nn.Parameter | None

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
        attention: DecoderAttention = "self",
        class_token: ClassToken = "encoder",
    ) -> None:
        super().__init__()
        self.is_cross, self.recompute = attention == "cross", False
        if self.is_cross and not mask_token:
            raise ValueError(
                "encoder_mask_tokens leaves decoder_attention: cross no hidden patches as queries; use one of the two"
            )
        if class_token == "constant" and taps:
            raise ValueError("decoder_class_token: constant leaves out what skips bring in again; use one of the two")
        self.grid, self.patch_size, self.num_heads, self.taps = grid, patch_size, heads, tuple(taps)
        self.embed = nn.Linear(encoder_width, width)
        self.register_parameter("mask_token", nn.Parameter(torch.empty(1, 1, width)) if mask_token else None)
        constant = nn.Parameter(torch.empty(1, 1, width)) if class_token == "constant" else None
        self.register_parameter("cls_token", constant)
        register_positions(self, positions, grid, width)
        block = CrossBlock if self.is_cross else Block
        self.blocks = nn.ModuleList(
            block(width, heads, mlp_ratio, qkv_bias=qkv_bias, layer_scale=layer_scale) for _ in range(depth)
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
        for token in (self.mask_token, self.cls_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)

    @property
    def balanced_weights(self) -> dict[str, tuple[Tensor, ...]]:
        """The weights at which gradients are balanced: of the embedding and the last block, and of the last layer."""
        outer = (*self.embed.parameters(), *self.blocks[-1].parameters())
        return {"decoder_weights": outer, "last_layer": (self.pred.weight,)}

    def forward(self, tokens: Tensor, tapped: Mapping[int, Tensor], visible: Tensor) -> tuple[Pyramid, Tensor]:
        """Images in the generator's normalised space, largest first, and the decoder's input (B, 1+L, d).

        tokens: (B, 1+V, D) of the encoder; tapped: encoder block -> (B, 1+V, D); visible: patch indices (B, V).
        """
        latent = self.to_latent(tokens, visible)
        return self.decode(latent, tapped, visible), latent

    def to_latent(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """The decoder's input (B, 1+L, d) of the encoder's tokens (B, 1+V, D) at patches (B, V)."""
        embedded: Tensor = self.embed(tokens)
        if self.cls_token is not None:
            constant = self.cls_token.to(embedded.dtype).expand(len(embedded), -1, -1)
            embedded = torch.cat([constant, embedded[:, 1:]], dim=1)
        return self.scatter_visible(embedded, visible)

    def decode(self, latent: Tensor, tapped: Mapping[int, Tensor], visible: Tensor) -> Pyramid:
        """Images in the generator's normalised space, largest first, of the decoder's input (B, 1+L, d)."""
        blocks = self.cross_attention_blocks if self.is_cross else self.self_attention_blocks
        outputs = blocks(latent, tapped, visible)
        patches: Tensor = self.pred(self.norm(outputs[-1])[:, 1:])
        images = [unpatchify(patches, self.patch_size, self.grid)]
        for level, head in enumerate(self.heads, start=1):
            images.append(head(outputs[head_block(level, len(self.blocks)) - 1]))
        return tuple(image.to(torch.promote_types(image.dtype, torch.float32)) for image in images)

    def self_attention_blocks(self, latent: Tensor, tapped: Mapping[int, Tensor], visible: Tensor) -> list[Tensor]:
        """Outputs (B, 1+L, d) of all blocks, in which every token attends to every other; see `forward`."""
        outputs: list[Tensor] = []
        tokens = latent
        for index, block in enumerate(self.blocks):
            if self.taps and index > 0:
                skip = self.skips[index - 1]
                assert isinstance(skip, Skip)
                tokens = skip(
                    tokens, self.scatter_visible(skip.narrow(tapped[self.taps[index - 1]], self.embed), visible)
                )
            tokens = run_block(block, tokens, recompute=self.recompute)
            outputs.append(tokens)
        return outputs

    def cross_attention_blocks(self, latent: Tensor, tapped: Mapping[int, Tensor], visible: Tensor) -> list[Tensor]:
        """Outputs (B, 1+L, d) of all blocks, in which every token attends to the latent's visible tokens alone.

        The class token is carried along for the layout that heads expect; its outputs are not used.
        """
        index = visible[..., None].expand(-1, -1, latent.shape[-1])
        visible_tokens = torch.cat([latent[:, :1], latent[:, 1:].gather(1, index)], dim=1)
        assert self.mask_token is not None
        # Queries of visible patches are like those of hidden ones: their tokens of the latent are keys, no queries.
        queries = (self.mask_token + self.pos_embed[:, 1:]).to(latent.dtype).expand(len(latent), -1, -1)
        tokens = torch.cat([latent[:, :1], latent[:, 1:].scatter(1, index, queries.gather(1, index))], dim=1)
        outputs: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            keys = visible_tokens
            if self.taps and number > 0:
                skip = self.skips[number - 1]
                assert isinstance(skip, Skip)
                keys = skip(visible_tokens, skip.narrow(tapped[self.taps[number - 1]], self.embed))
            tokens = run_block(block, tokens, keys, recompute=self.recompute)
            outputs.append(tokens)
        return outputs

    def scatter_visible(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """All tokens (B, 1+L, d): visible ones (B, 1+V, d) at patches (B, V), mask tokens elsewhere; plus positions."""
        if self.mask_token is None:
            return tokens + self.pos_embed
        index = visible[..., None].expand(-1, -1, tokens.shape[-1])
        hidden = self.mask_token.to(tokens.dtype).expand(len(tokens), self.grid[0] * self.grid[1], -1)
        return torch.cat([tokens[:, :1], hidden.scatter(1, index, tokens[:, 1:])], dim=1) + self.pos_embed
