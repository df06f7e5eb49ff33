"""The discriminator of StyleGAN2, for any size that halves, on a pyramid of images or on the largest alone."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from discriminators.contract import DiscriminatorOutput, check_pyramid, check_resolutions
from discriminators.layers import (
    Blur,
    EqualizedConv2d,
    EqualizedLinear,
    Group,
    Stem,
    check_group,
    check_stem,
    minibatch_stddev,
)

GAIN = math.sqrt(2)
"""Factor on a leaky ReLU's output, which keeps the variance about 1."""

HALF = math.sqrt(0.5)
"""Factor on two maps that are added, for the same reason."""


class StyleGAN2(nn.Module):
    """Discriminator of StyleGAN2: residual blocks with blurred downsampling, then two fully connected layers.

    A block has two 3x3 convolutions, the second after a blur and at stride 2. The width at a level is `channel_base`
    divided by its longer side, rounded up to a power of two, at most `max_channels`; the cost grows with the square of
    the base. NVIDIA's own is 16384 below 512 pixels. Features are the maps after the image of their level has joined.

    input "pyramid" adds a map of each level's image to the trunk; "single" reads the largest level alone, and is at a
    power of two NVIDIA's network tensor for tensor (see `discriminators.nvidia`). architecture (StyleGAN2 figure 7):
    "resnet" has a blurred 1x1 shortcut past each block; "orig" has none; "skip" has none either, and adds a map of the
    image at every level, for which a single image is blurred and halved. On a pyramid "orig" and "skip" are the same.

    Stem "space_to_depth" takes the place of the block at the largest level: each 2x2 pixels become the channels of one,
    which a 1x1 convolution reads. Maps of features are as many, and of the same sizes.

    Options:
        input: "pyramid" reads an image at every level, "single" the largest alone, as NVIDIA's network [paper]
        architecture: "resnet" has shortcuts past the blocks, "orig" none, "skip" an image at every level [StyleGAN2]
        combine: how a pyramid's images join: "sum" is (trunk + map) / sqrt(2), "lin_cat" half the channels each [ours]
        channel_base: channels times pixels of the longer side; null gives 64 channels at the largest level [ours]
        max_channels: most channels a level may have [StyleGAN2]
        minibatch_stddev: whether the last convolution reads the minibatch standard deviation; R3GAN's does not
            [StyleGAN2]
        minibatch_group: most images in a group of the minibatch standard deviation, or "batch" [StyleGAN2]
        stem: "plain" has a block at the largest level; "space_to_depth" has each 2x2 pixels as channels of one in place
            of it, which costs a fraction [StyleGAN2]

    Raises ValueError for options out of range and for sizes that do not halve exactly.
    """

    def __init__(
        self,
        resolutions: Sequence[tuple[int, int]],
        channels: int,
        *,
        input: Literal["pyramid", "single"] = "pyramid",
        architecture: Literal["resnet", "orig", "skip"] = "resnet",
        combine: Literal["sum", "lin_cat"] = "sum",
        channel_base: int | None = None,
        max_channels: int = 512,
        minibatch_stddev: bool = True,
        minibatch_group: Group = 4,
        stem: Stem = "plain",
    ) -> None:
        super().__init__()
        if input not in ("pyramid", "single"):
            raise ValueError(f"unknown input {input!r} of stylegan2; choose from: pyramid, single")
        if architecture not in ("resnet", "orig", "skip"):
            raise ValueError(f"unknown architecture {architecture!r} of stylegan2; choose from: resnet, orig, skip")
        if combine not in ("sum", "lin_cat"):
            raise ValueError(f"unknown combine {combine!r} of stylegan2; choose from: sum, lin_cat")
        if input == "single" and combine != "sum":
            raise ValueError(f"combine {combine!r} of stylegan2 joins the images of a pyramid; input single has none")
        check_group("stylegan2", minibatch_group)
        check_resolutions("stylegan2", resolutions, smallest=1)
        check_stem("stylegan2", stem, resolutions[0])
        base = 64 * _power_of_two_above(resolutions[0]) if channel_base is None else channel_base
        widths = [_width(size, base, max_channels) for size in resolutions]
        if min(widths) < 1 or (combine == "lin_cat" and any(width % 2 for width in widths)):
            raise ValueError(
                f"channel_base {base} and max_channels {max_channels} of stylegan2 give widths {widths} at "
                f"{resolutions[0][0]}x{resolutions[0][1]} pixels; they must be positive, and even for lin_cat"
            )

        self.resolutions, self.channels = tuple(resolutions), channels
        self.levels = 1 if input == "single" else len(resolutions)
        self.concatenates = combine == "lin_cat"
        self.halves_images = input == "single" and architecture == "skip"
        many = input == "pyramid" or architecture == "skip"
        summed = HALF if input == "pyramid" and combine == "sum" else 1.0
        trunks = [width // 2 if self.concatenates else width for width in widths[1:]]

        def from_rgb(level: int) -> EqualizedConv2d | None:
            if level == 0:
                return EqualizedConv2d(channels, widths[0], 1, gain=GAIN)
            return EqualizedConv2d(channels, trunks[level - 1], 1, gain=GAIN * summed) if many else None

        self.blur = Blur()
        self.blocks = nn.ModuleList(
            _Block(from_rgb(level), width, trunk, residual=architecture == "resnet", gain=summed)
            for level, (width, trunk) in enumerate(zip(widths[:-1], trunks, strict=True))
        )
        if stem == "space_to_depth":
            self.blocks[0] = _SpaceToDepth(channels, trunks[0], gain=summed)
        group = minibatch_group if minibatch_stddev else None
        self.epilogue = _Epilogue(from_rgb(len(trunks)), widths[-1], resolutions[-1], group)

    def forward(self, pyramid: Sequence[Tensor]) -> DiscriminatorOutput:
        """Return raw logits (B, 1) and a map for each level but the largest; levels: (B, C, H, W) in [0, 1]."""
        check_pyramid("stylegan2", pyramid, self.resolutions, self.channels, self.levels)
        images = [level * 2 - 1 for level in pyramid[: self.levels]]
        while self.halves_images and len(images) <= len(self.blocks):
            images.append(self.blur(images[-1], padding=1, step=2))
        features: list[Tensor] = []
        hidden = images[0]
        for level, stage in enumerate([*self.blocks, self.epilogue]):
            if stage.from_rgb is not None:
                hidden = self._join(stage.from_rgb(images[level]), hidden) if level else stage.from_rgb(hidden)
            if level:
                features.append(hidden)
            hidden = stage(hidden)
        return DiscriminatorOutput(hidden, tuple(features))

    def _join(self, rgb: Tensor, trunk: Tensor) -> Tensor:
        """Return the joined map (B, C, H, W); a sum's 1/sqrt(2) is in the gains of both."""
        return torch.cat([rgb, trunk], dim=1) if self.concatenates else rgb + trunk


class _Block(nn.Module):
    """Halves (B, width, H, W) to (B, out_width, H/2, W/2); `gain` is the standard deviation of the result, about."""

    def __init__(
        self, from_rgb: EqualizedConv2d | None, width: int, out_width: int, *, residual: bool, gain: float
    ) -> None:
        super().__init__()
        gain = gain * HALF if residual else gain
        self.from_rgb = from_rgb
        self.conv0 = EqualizedConv2d(width, width, 3, padding=1, gain=GAIN)
        self.conv1 = EqualizedConv2d(width, out_width, 3, stride=2, gain=GAIN * gain)
        self.skip = EqualizedConv2d(width, out_width, 1, bias=False, activate=False, gain=gain) if residual else None
        self.blur = Blur()

    def forward(self, hidden: Tensor) -> Tensor:
        halved: Tensor = self.conv1(self.blur(self.conv0(hidden), padding=2))
        if self.skip is None:
            return halved
        shortcut: Tensor = self.skip(self.blur(hidden, padding=1, step=2))
        return halved + shortcut


class _SpaceToDepth(nn.Module):
    """Reads images (B, channels, H, W) as (B, width, H/2, W/2), each 2x2 pixels as the channels of one."""

    def __init__(self, channels: int, width: int, *, gain: float) -> None:
        super().__init__()
        self.from_rgb = None
        self.from_pixels = EqualizedConv2d(4 * channels, width, 1, gain=GAIN * gain)

    def forward(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.from_pixels(F.pixel_unshuffle(images, 2))
        return hidden


class _Epilogue(nn.Module):
    """Turns the smallest level's map (B, width, h, w) into raw logits (B, 1); without `group` each image alone."""

    def __init__(
        self, from_rgb: EqualizedConv2d | None, width: int, size: tuple[int, int], group: Group | None
    ) -> None:
        super().__init__()
        self.from_rgb = from_rgb
        self.group = group
        self.conv = EqualizedConv2d(width + (group is not None), width, 3, padding=1, gain=GAIN)
        self.fc = EqualizedLinear(width * size[0] * size[1], width, gain=GAIN)
        self.out = EqualizedLinear(width, 1, activate=False)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.group is not None:
            hidden = minibatch_stddev(hidden, self.group)
        logits: Tensor = self.out(self.fc(self.conv(hidden).flatten(1)))
        return logits


def _width(size: tuple[int, int], channel_base: int, max_channels: int) -> int:
    return min(channel_base // _power_of_two_above(size), max_channels)


def _power_of_two_above(size: tuple[int, int]) -> int:
    """Return the longer side, rounded up to a power of two: 224 counts as 256."""
    return 1 << (max(size) - 1).bit_length()
