"""A small frozen network, in place of one whose weights come from a file."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class StandIn(nn.Module):
    """Maps (B, C_j, H / 2^j, W / 2^j) of images (B, C, H, W) in [0, 1], a strided convolution each; no ReLU in it."""

    def __init__(self, channels: int, widths: Sequence[int] = (16,)) -> None:
        super().__init__()
        sizes = (channels, *widths)
        self.layers = nn.ModuleList(
            nn.Conv2d(inner, outer, 3, stride=2, padding=1) for inner, outer in zip(sizes, widths, strict=False)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features: list[Tensor] = []
        hidden = 4 * images - 2
        for layer in self.layers:
            hidden = 2 * torch.tanh(layer(hidden))
            features.append(hidden)
        return tuple(features)


def needed_options(kind: str, channels: int) -> dict[str, Any]:
    """What a kind of discriminator cannot be built without."""
    return {"network": StandIn(channels), "norm": "none"} if kind == "projected" else {}
