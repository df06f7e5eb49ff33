"""Small networks in place of those that a discriminator is made of: one from a file, the generator's encoder."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from discriminators import DISCRIMINATORS
from perceptual_mae.config.from_signature import first_parameter
from perceptual_mae.generator.encoder import Encoder


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


def stand_in_encoder(channels: int) -> Encoder:
    """A small encoder of any images that patches of 8 pixels tile."""
    half = [0.5] * channels
    return Encoder((32, 32), channels, half, half, patch_size=8, width=32, depth=2, heads=2)


def make_discriminator(
    kind: str, resolutions: Sequence[tuple[int, int]], channels: int, **options: object
) -> nn.Module:
    """A discriminator of the table, with a small network where it cannot be built without one."""
    made_of = (stand_in_encoder(channels),) if first_parameter(DISCRIMINATORS[kind]) == "encoder" else ()
    needed = {"network": StandIn(channels), "norm": "none"} if kind == "projected" else {}
    return DISCRIMINATORS[kind](*made_of, resolutions, channels, **needed | options)
