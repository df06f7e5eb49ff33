"""Connections from encoder blocks to decoder blocks (Perceptual MAE section 3.3). Blocks are numbered from 1.

Shapes: B images, L patches, V visible patches, D encoder width, d decoder width.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from perceptual_mae.generator.vit import LayerNorm

SkipMap = Literal["auto", "mirror", "even"]


def tapped_blocks(encoder_depth: int, decoder_depth: int, skip_map: SkipMap = "auto") -> tuple[int, ...]:
    """Encoder blocks that feed decoder blocks 2, 3, ..., in that order; the paper leaves the choice open.

    "mirror": decoder block i takes encoder block depth + 1 - i, as in a U-Net. "even": the taps spread over the whole
    encoder. "auto": mirror, but even where mirroring would reach only the encoder's last half or is impossible.
    """
    if skip_map == "auto":
        skip_map = "mirror" if decoder_depth <= encoder_depth < 2 * decoder_depth else "even"
    if skip_map == "mirror":
        if encoder_depth < decoder_depth:
            raise ValueError(
                f"skip_map mirror needs depth >= decoder_depth, got {encoder_depth} < {decoder_depth}; "
                "use skip_map: even"
            )
        return tuple(encoder_depth + 1 - block for block in range(2, decoder_depth + 1))
    # encoder_depth * (decoder_depth + 1 - block) / decoder_depth, halves rounded up, in whole numbers
    steps = (2 * encoder_depth * (decoder_depth + 1 - block) + decoder_depth for block in range(2, decoder_depth + 1))
    return tuple(max(1, step // (2 * decoder_depth)) for step in steps)


class Skip(nn.Module):
    """Skip connection from one encoder block to one decoder block: norm, projection and fusion."""

    def __init__(self, encoder_width: int, width: int, *, own_projection: bool) -> None:
        super().__init__()
        self.norm = LayerNorm(encoder_width)  # taps are residual streams, not normalised
        self.project = nn.Linear(encoder_width, width) if own_projection else None
        self.fuse = nn.Linear(2 * width, width)

    def narrow(self, tap: Tensor, shared: nn.Module) -> Tensor:
        """Visible tokens (B, 1+V, d) of a tap (B, 1+V, D), by its own projection or else by the shared one."""
        project = shared if self.project is None else self.project
        projected: Tensor = project(self.norm(tap))
        return projected

    def forward(self, tokens: Tensor, skipped: Tensor) -> Tensor:
        """Tokens (B, N, d) of the decoder fused with those of the skip, of the same shape."""
        fused: Tensor = self.fuse(torch.cat([tokens, skipped], dim=-1))
        return fused
