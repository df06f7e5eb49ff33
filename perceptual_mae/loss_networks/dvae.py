"""Encoder of DALL-E's discrete VAE as loss network (*Zero-Shot Text-to-Image Generation*; Perceptual MAE eq. 7).

The published encoder is a pickled network. Where its package `dall_e` is installed,

    torch.save(torch.load("encoder.pkl", weights_only=False).state_dict(), "dvae_encoder.pt")

makes the file that is read here. Its names are `blocks.input`, `blocks.group_{1..4}.block_{1,2}.id_path` (where the
width changes), `...res_path.conv_{1..4}` and `blocks.output.conv`, each with a weight `w` and a bias `b`.
"""

from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn

from perceptual_mae.loss_networks.frozen import FrozenNetwork, Taps, with_weights

Layer = Literal["group_1", "group_2", "group_3", "group_4", "output"]

NUM_TOKENS = 8192
_LAYERS = ("group_1", "group_2", "group_3", "group_4", "output")
_NUM_BLOCKS = 8
_LOGIT_LAPLACE = ((-0.125,) * 3, (1.25,) * 3)  # (x + .125) / 1.25 = .8 x + .1 keeps pixels off the ends of [0, 1]


def dvae(
    size: tuple[int, int],
    channels: int,
    *,
    weights: str | None = None,
    sha256: str | None = None,
    layers: tuple[Layer, ...] = ("group_1", "group_2", "group_3", "group_4"),
    width: int = 256,
) -> FrozenNetwork:
    """Encoder of DALL-E's discrete VAE: the outputs of its four groups, and the logits of its tokens.

    At 224 pixels the groups give 256 x 112 x 112, 512 x 56 x 56, 1024 x 28 x 28 and 2048 x 28 x 28, the output
    8192 x 28 x 28, for 91 billion multiplications an image. Images (B, C, H, W) in [0, 1] are mapped to .8 x + .1.

    Options:
        weights: file of the encoder's state dict, a name of `pmae weights list`, or "random"; must be given [none]
        sha256: SHA-256 that the file must have, or its first 8 digits or more; null checks none [none]
        layers: layers whose features are compared; "output" is the logits [paper]
        width: channels of the first group, a multiple of 4; 256 is DALL-E's [DALL-E]

    Raises ValueError for unknown layers.
    """
    if not layers or not set(layers) <= set(_LAYERS):
        raise ValueError(f"dvae has no layers {list(layers)}; choose from: {', '.join(_LAYERS)}")
    if width < 4 or width % 4:
        raise ValueError(f"dvae needs a width that is a multiple of 4, not {width}")
    with torch.device("meta"):
        taps = Taps(encoder_blocks(width), layers)
    frozen = FrozenNetwork("dvae", taps, size, channels, *_LOGIT_LAPLACE)
    return with_weights(frozen, weights, sha256, _published_name)


def encoder_blocks(width: int = 256) -> nn.Sequential:
    """Return the whole encoder: 7x7 convolution, four groups of two residual blocks, pooled by 2 between them, 1x1."""
    widths = [width, width, 2 * width, 4 * width, 8 * width]
    blocks: OrderedDict[str, nn.Module] = OrderedDict(input=nn.Conv2d(3, width, 7, padding=3))
    for group in range(1, 5):
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["block_1"] = ResidualBlock(widths[group - 1], widths[group])
        layers["block_2"] = ResidualBlock(widths[group], widths[group])
        if group < 4:
            layers["pool"] = nn.MaxPool2d(2)
        blocks[f"group_{group}"] = nn.Sequential(layers)
    head = OrderedDict(relu=nn.ReLU(), conv=nn.Conv2d(widths[-1], NUM_TOKENS, 1))
    blocks["output"] = nn.Sequential(head)
    return nn.Sequential(blocks)


class ResidualBlock(nn.Module):
    """x + R(x) / 64: three 3x3 convolutions at a quarter of the width and a 1x1, each after a ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        narrow = out_channels // 4
        self.id_path = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        path: OrderedDict[str, nn.Module] = OrderedDict()
        for index, (source, target, side) in enumerate(
            [(in_channels, narrow, 3), (narrow, narrow, 3), (narrow, narrow, 3), (narrow, out_channels, 1)], start=1
        ):
            path[f"relu_{index}"] = nn.ReLU()
            path[f"conv_{index}"] = nn.Conv2d(source, target, side, padding=side // 2)
        self.res_path = nn.Sequential(path)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (B, out_channels, H, W) from (B, in_channels, H, W)."""
        total: Tensor = self.id_path(hidden) + self.res_path(hidden) / _NUM_BLOCKS**2
        return total


def _published_name(name: str) -> str:
    stem, _, last = name.replace("layers.", "blocks.", 1).rpartition(".")
    return f"{stem}.{last[0]}"  # weight is w, bias is b
