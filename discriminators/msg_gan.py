"""The discriminator of MSG-GAN: images of every size enter the trunk at their own level."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from discriminators.contract import DiscriminatorOutput, check_pyramid, check_resolutions
from discriminators.layers import EqualizedConv2d, Group, check_group, minibatch_stddev

Combine = Literal["lin_cat", "simple", "cat_lin", "sum"]
FeaturePoint = Literal["merged", "block"]


class MSGGAN(nn.Module):
    """A trunk of 3x3 convolutions and average pooling, joined at each level by that level's image (MSG-GAN section 3).

    The trunk is `base_channels` wide at the largest level and twice as wide at each next one, up to `max_channels`. It
    ends in the minibatch's deviation, a 3x3, a 4x4 and a 1x1 convolution: raw logits (B, h - 3, w - 3), where (h, w) is
    the smallest level. All levels of the pyramid are read.

    combine: how an image joins the trunk. "lin_cat": a 1x1 convolution makes half of the channels, the trunk the other;
    "simple": the bare image beside the trunk's channels; "cat_lin": the same, then a 1x1 convolution; "sum": (trunk +
    1x1 convolution of the image) / sqrt(2), which keeps the variance (not in MSG-GAN).
    feature_point: features are the maps after the image has joined ("merged", so that each image has a part in them) or
    before ("block"). equalized_lr: see `EqualizedConv2d`; it wants a learning rate some 16 times larger.
    minibatch_group: see `minibatch_stddev`; the authors' code takes the whole "batch", which makes an image's logit
    depend on how a batch is spread over processes.
    """

    def __init__(
        self,
        resolutions: Sequence[tuple[int, int]],
        channels: int,
        *,
        base_channels: int = 64,
        max_channels: int = 512,
        combine: Combine = "lin_cat",
        feature_point: FeaturePoint = "merged",
        equalized_lr: bool = True,
        minibatch_group: Group = 4,
    ) -> None:
        super().__init__()
        if combine not in ("lin_cat", "simple", "cat_lin", "sum"):
            raise ValueError(f"unknown combine {combine!r} of msg_gan; choose from: lin_cat, simple, cat_lin, sum")
        if feature_point not in ("merged", "block"):
            raise ValueError(f"unknown feature_point {feature_point!r} of msg_gan; choose from: merged, block")
        if base_channels < 1 or max_channels < base_channels or max_channels % 2:
            raise ValueError(
                f"msg_gan needs 1 <= base_channels <= max_channels and an even max_channels, not base_channels "
                f"{base_channels} and max_channels {max_channels}"
            )
        check_group("msg_gan", minibatch_group)
        check_resolutions("msg_gan", resolutions, smallest=4)

        self.resolutions, self.channels, self.levels = tuple(resolutions), channels, len(resolutions)
        self.feature_point, self.minibatch_group = feature_point, minibatch_group
        convolution = partial(EqualizedConv2d, weight_gain=math.sqrt(2), equalized=equalized_lr)
        widths = [min(base_channels * 2**level, max_channels) for level in range(self.levels)]
        self.from_rgb = convolution(channels, widths[0], 1, activate=False)
        self.blocks, self.merges = nn.ModuleList(), nn.ModuleList()
        entering = widths[0]
        for width, after in pairwise(widths):
            trunk = after // 2 if combine == "lin_cat" else after
            self.blocks.append(
                nn.Sequential(convolution(entering, width, 3, padding=1), convolution(width, trunk, 3, padding=1))
            )
            self.merges.append(_Merge(combine, channels, trunk, convolution))
            entering = after + channels if combine == "simple" else after
        self.final = nn.Sequential(
            convolution(entering + 1, widths[-1], 3, padding=1),
            convolution(widths[-1], widths[-1], 4),
            convolution(widths[-1], 1, 1, activate=False),
        )

    def forward(self, pyramid: Sequence[Tensor]) -> DiscriminatorOutput:
        """Return raw logits (B, h, w) and a map for each level but the largest; levels: (B, C, H, W) in [0, 1]."""
        check_pyramid("msg_gan", pyramid, self.resolutions, self.channels, self.levels)
        features: list[Tensor] = []
        hidden = self.from_rgb(pyramid[0] * 2 - 1)
        for images, block, merge in zip(pyramid[1:], self.blocks, self.merges, strict=True):
            trunk = F.avg_pool2d(block(hidden), 2)
            hidden = merge(trunk, images * 2 - 1)
            features.append(hidden if self.feature_point == "merged" else trunk)
        logits: Tensor = self.final(minibatch_stddev(hidden, self.minibatch_group))
        return DiscriminatorOutput(logits.squeeze(1), tuple(features))


class _Merge(nn.Module):
    """Joins a level's image in [-1, 1] to the trunk's map of `trunk` channels."""

    def __init__(self, combine: Combine, channels: int, trunk: int, convolution: partial[EqualizedConv2d]) -> None:
        super().__init__()
        self.combine = combine
        before = trunk + channels if combine == "cat_lin" else channels
        self.from_rgb = None if combine == "simple" else convolution(before, trunk, 1, activate=False)

    def forward(self, trunk: Tensor, images: Tensor) -> Tensor:
        if self.from_rgb is None:
            return torch.cat([images.to(trunk.dtype), trunk], dim=1)
        if self.combine == "cat_lin":
            joined: Tensor = self.from_rgb(torch.cat([images.to(trunk.dtype), trunk], dim=1))
            return joined
        if self.combine == "sum":
            total: Tensor = (trunk + self.from_rgb(images)) * math.sqrt(0.5)
            return total
        return torch.cat([self.from_rgb(images), trunk], dim=1)
