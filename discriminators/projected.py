"""A discriminator on the features of a frozen network."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from discriminators.contract import DiscriminatorOutput, check_pyramid
from discriminators.layers import LEAK
from discriminators.precision import full_precision


class Projected(nn.Module):
    """Discriminator on the features of a frozen network of the full-size image: a small head at each of its layers.

    Projected GANs Converge Faster (Sauer et al. 2021) with the heads of StyleGAN-T, which here are convolutions over
    maps. For their batch norm each map is divided by its root mean square within an image: networks differ in scale,
    and heads with a spectral norm could not make up for it. The logits (B, N) are those of all positions of all heads,
    one after the other: where a loss averages them, a layer counts by its number of positions. Features are the heads'
    last hidden maps (B, width, h, w), in the order of the network's, shallow to deep.

    `network` takes images (B, C, H, W) in [0, 1], which it normalises itself, and returns maps (B, C_j, H_j, W_j). The
    gradient to the image passes through it. Its weights have none, are no parameters or state of the discriminator
    (they come from their file), and stay in evaluation mode.

    Options:
        network: the frozen network whose features are read [none]
        width: channels of the heads' hidden maps [ours]
        norm: "spectral" on all convolutions of the heads, or "none" [StyleGAN-T]

    Raises ValueError for options out of range and for a network that does not return maps.
    """

    def __init__(
        self,
        resolutions: Sequence[tuple[int, int]],
        channels: int,
        *,
        network: nn.Module,
        width: int = 64,
        norm: Literal["spectral", "none"] = "spectral",
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"projected needs a width of at least 1, not {width}")
        if norm not in ("spectral", "none"):
            raise ValueError(f"unknown norm {norm!r} of projected; choose from: spectral, none")
        self.levels = 1
        self.resolutions, self.channels = tuple(resolutions), channels
        self._frozen = (network.requires_grad_(False).eval(),)  # in a tuple it is no module of this one
        self.heads = nn.ModuleList(_Head(each, width, norm) for each in self._feature_channels())

    @property
    def network(self) -> nn.Module:
        """The frozen network."""
        return self._frozen[0]

    def forward(self, pyramid: Sequence[Tensor]) -> DiscriminatorOutput:
        """Return raw logits (B, N) and a map (B, width, h, w) a head; pyramid[0]: (B, C, H, W) in [0, 1]."""
        check_pyramid("projected", pyramid, self.resolutions, self.channels, self.levels)
        maps = [_normalise(each) for each in self.network(pyramid[0])]
        logits, features = zip(*(head(each) for head, each in zip(self.heads, maps, strict=True)), strict=True)
        return DiscriminatorOutput(torch.cat(logits, dim=1), features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Projected":
        """Take the frozen network along where this one moves to a device, a type or a memory format."""
        self.network._apply(fn)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @torch.no_grad()
    def _feature_channels(self) -> list[int]:
        """Return the channels of the network's maps, of one black image; on the meta device this costs nothing."""
        weights = next(self.network.parameters())
        black = torch.zeros(1, self.channels, *self.resolutions[0], device=weights.device, dtype=weights.dtype)
        maps = tuple(self.network(black))
        if not maps or any(each.ndim != 4 for each in maps):
            shapes = ", ".join(str(tuple(each.shape)) for each in maps)
            raise ValueError(f"projected needs a network that returns maps (B, C, H, W), not ({shapes})")
        return [each.shape[1] for each in maps]


class _Head(nn.Module):
    """Logits (B, h w) and the hidden map (B, width, h, w) of one of the frozen network's maps (B, channels, h, w)."""

    def __init__(self, channels: int, width: int, norm: str) -> None:
        super().__init__()
        normed = spectral_norm if norm == "spectral" else nn.Identity()
        self.enter = normed(nn.Conv2d(channels, width, 1))
        self.mix = normed(nn.Conv2d(width, width, 3, padding=1))
        self.out = normed(nn.Conv2d(width, 1, 1))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.leaky_relu(self.enter(features), LEAK)
        hidden = F.leaky_relu((hidden + self.mix(hidden)) * math.sqrt(0.5), LEAK)
        return self.out(hidden).flatten(1), hidden


def _normalise(features: Tensor) -> Tensor:
    """Return maps (B, C, h, w) of mean square 1 over each image, in float32 or wider."""
    features = full_precision(features)
    return features * (features.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-8).rsqrt()
