"""The convolutional discriminator of LS-GAN, on the full-size image alone."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from discriminators.contract import DiscriminatorOutput
from discriminators.layers import Stem, check_stem

Norm = Literal["group", "none", "instance", "spectral"]


class LSGAN(nn.Module):
    """Convolutional discriminator of LS-GAN: stages of 4x4 convolutions with leaky ReLU, on the full-size image alone.

    A last, linear convolution gives a map of raw logits (B, h, w). In form "dcgan" each stage halves the image and
    doubles the width until the shorter side has at most 7 pixels, and a 4x4 window gives a logit: 4x4 logits at 224
    pixels, one at 32 and 64. Form "patch" has three halving stages (two below 64 pixels), a fourth at stride 1, and a
    logit for each 70x70 pixels. Features are the stages' outputs. Convolutions keep PyTorch's own initialisation.

    Normalisation acts within each image, so that real and fake share no statistics, and on all stages but the first.
    The power iteration of "spectral" moves buffers at every forward in training mode.

    Stem "space_to_depth" takes the place of the first stage: each 2x2 pixels become the channels of one, and the second
    stage reads these. There is one map of features less, and "patch" sees 68 pixels.

    Options:
        form: "dcgan" halves the image down to 7 pixels or fewer; "patch" gives one logit for each 70x70 pixels [ours]
        base_channels: channels of the first stage; later stages double them [paper's code]
        max_channels: most channels a stage may have [paper's code]
        norm: "group", "instance" or "none" after each stage but the first, or "spectral" on all convolutions [ours]
        stem: "plain" has a stage for the full size; "space_to_depth" has each 2x2 pixels as channels of one in place of
            it, which costs a fraction [paper's code]

    Raises ValueError for images that are too small and for options out of range.
    """

    def __init__(
        self,
        resolutions: Sequence[tuple[int, int]],
        channels: int,
        *,
        form: Literal["dcgan", "patch"] = "dcgan",
        base_channels: int = 64,
        max_channels: int = 512,
        norm: Norm = "group",
        stem: Stem = "plain",
    ) -> None:
        super().__init__()
        if form not in ("dcgan", "patch"):
            raise ValueError(f"unknown form {form!r} of ls_gan; choose from: dcgan, patch")
        if norm not in ("group", "none", "instance", "spectral"):
            raise ValueError(f"unknown norm {norm!r} of ls_gan; choose from: group, none, instance, spectral")
        check_stem("ls_gan", stem, resolutions[0])
        if base_channels < 1 or max_channels < base_channels:
            raise ValueError(
                f"ls_gan needs 1 <= base_channels <= max_channels, not base_channels {base_channels} "
                f"and max_channels {max_channels}"
            )
        height, width = resolutions[0]
        is_plain = stem == "plain"
        smallest = {"dcgan": 8 if is_plain else 16, "patch": 12}[form]  # one stage is left
        if min(height, width) < smallest:
            raise ValueError(
                f"image size {height}x{width} is too small for ls_gan's form {form}; "
                f"it needs at least {smallest} pixels a side"
            )

        self.levels, self.stem = 1, stem
        self.shape = (channels, height, width)
        halving, widths = _plan(form, min(height, width), base_channels, max_channels)
        if not is_plain:
            halving, widths, channels = halving - 1, widths[1:], 4 * channels
        self.stages = nn.ModuleList(
            _stage(width, next_width, 2 if index < halving else 1, "none" if not index and norm != "spectral" else norm)
            for index, (width, next_width) in enumerate(pairwise((channels, *widths)))
        )
        head = nn.Conv2d(widths[-1], 1, 4, padding=0 if form == "dcgan" else 1)
        self.head = spectral_norm(head) if norm == "spectral" else head

    def forward(self, pyramid: Sequence[Tensor]) -> DiscriminatorOutput:
        """Return raw logits (B, h, w) and the stages' features; pyramid[0]: (B, C, H, W) in [0, 1]."""
        shape = tuple(pyramid[0].shape) if pyramid else ()
        if len(shape) != 4 or shape[1:] != self.shape:
            expected = ", ".join(str(size) for size in self.shape)
            raise ValueError(f"ls_gan was built for images (B, {expected}), but got {shape or 'none'}")
        features: list[Tensor] = []
        hidden = pyramid[0] * 2 - 1
        if self.stem == "space_to_depth":
            hidden = F.pixel_unshuffle(hidden, 2)
        for stage in self.stages:
            hidden = stage(hidden)
            features.append(hidden)
        logits: Tensor = self.head(hidden)
        return DiscriminatorOutput(logits.squeeze(1), tuple(features))


def _plan(form: str, side: int, base_channels: int, max_channels: int) -> tuple[int, list[int]]:
    """Return how many stages halve the image, and the widths of all stages."""
    if form == "patch":
        halving = 3 if side >= 64 else 2
        multiples = [*[1, 2, 4][:halving], 8]
    else:
        halving = 0
        while side > 7:
            side, halving = side // 2, halving + 1
        multiples = [2**index for index in range(halving)]
    return halving, [min(base_channels * multiple, max_channels) for multiple in multiples]


def _stage(in_channels: int, out_channels: int, stride: int, norm: Norm) -> nn.Sequential:
    # A bias under per-channel statistics would be subtracted again.
    convolution: nn.Module = nn.Conv2d(in_channels, out_channels, 4, stride, padding=1, bias=norm != "instance")
    layers = [spectral_norm(convolution) if norm == "spectral" else convolution]
    if norm == "group":
        layers.append(nn.GroupNorm(_groups(out_channels), out_channels))
    elif norm == "instance":
        layers.append(nn.InstanceNorm2d(out_channels, affine=True))
    return nn.Sequential(*layers, nn.LeakyReLU(0.2))


def _groups(width: int) -> int:
    """Return the largest number of groups up to 32 that share `width` channels evenly, two or more in each."""
    return max((groups for groups in range(1, 33) if width % groups == 0 and width // groups > 1), default=1)
