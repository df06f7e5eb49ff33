"""The discriminator of MSG-GAN, whose trunk is joined at each level by the image of that size."""

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
    """Discriminator of MSG-GAN: a convolutional trunk, joined at each level by the pyramid's image of that size.

    The trunk has blocks of two 3x3 convolutions, each followed by average pooling (MSG-GAN section 3), and ends in the
    minibatch standard deviation, a 3x3, a 4x4 and a 1x1 convolution: raw logits (B, h - 3, w - 3), where (h, w) is the
    smallest level. All levels of the pyramid are read.

    How an image joins the trunk: "lin_cat": a 1x1 convolution makes half of the channels, the trunk the other half;
    "simple": the image's own channels are concatenated; "cat_lin": the same, then a 1x1 convolution; "sum": (trunk +
    1x1 convolution of the image) / sqrt(2), which keeps the variance (not in MSG-GAN). MSG-GAN's own code takes the
    minibatch standard deviation over the whole "batch": an image's logit then depends on the number of processes.

    Options:
        base_channels: channels at the largest level; each next level has twice as many [ours]
        max_channels: most channels a level may have, an even number [MSG-GAN]
        combine: how a level's image joins the trunk: concatenated or added, through a 1x1 convolution or bare [MSG-GAN]
        feature_point: whether features are the maps after an image has joined ("merged") or before ("block") [ours]
        equalized_lr: scale weights at run time (equalised learning rate); needs an lr some 16 times larger [MSG-GAN]
        minibatch_group: most images in a group of the minibatch standard deviation, or "batch" [StyleGAN2]

    Raises ValueError for options out of range and for sizes that do not halve exactly.
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
        for width, next_width in pairwise(widths):
            trunk = next_width // 2 if combine == "lin_cat" else next_width
            self.blocks.append(
                nn.Sequential(convolution(entering, width, 3, padding=1), convolution(width, trunk, 3, padding=1))
            )
            self.merges.append(_Merge(combine, channels, trunk, convolution))
            entering = next_width + channels if combine == "simple" else next_width
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
    """Joins a level's image in [-1, 1] to the trunk's map of `trunk` channels, as `MSGGAN` describes."""

    def __init__(self, combine: Combine, channels: int, trunk: int, convolution: partial[EqualizedConv2d]) -> None:
        super().__init__()
        self.combine = combine
        in_channels = trunk + channels if combine == "cat_lin" else channels
        self.from_rgb = None if combine == "simple" else convolution(in_channels, trunk, 1, activate=False)

    def forward(self, trunk: Tensor, images: Tensor) -> Tensor:
        """Return the joined map (B, C', H, W) of a trunk (B, C, H, W) and images (B, channels, H, W) in [-1, 1]."""
        if self.from_rgb is None:
            return torch.cat([images.to(trunk.dtype), trunk], dim=1)
        if self.combine == "cat_lin":
            joined: Tensor = self.from_rgb(torch.cat([images.to(trunk.dtype), trunk], dim=1))
            return joined
        if self.combine == "sum":
            total: Tensor = (trunk + self.from_rgb(images)) * math.sqrt(0.5)
            return total
        return torch.cat([self.from_rgb(images), trunk], dim=1)
