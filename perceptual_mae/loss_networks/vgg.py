"""VGG-16 of ImageNet as loss network (*Perceptual Losses for Real-Time Style Transfer*, Johnson et al.)."""

from typing import Literal

import torch
from torchvision import models

from perceptual_mae.loss_networks.frozen import IMAGENET, FrozenNetwork, Taps, with_weights

Layer = Literal[
    "relu1_2", "pool1", "relu2_2", "pool2", "relu3_3", "pool3", "relu4_3", "pool4", "relu5_3", "pool5"
]  # fmt: skip

_INDICES = {
    "relu1_2": 3, "pool1": 4, "relu2_2": 8, "pool2": 9, "relu3_3": 15,
    "pool3": 16, "relu4_3": 22, "pool4": 23, "relu5_3": 29, "pool5": 30,
}  # fmt: skip
"""Index of each layer in torchvision's `features`."""


def vgg16(
    size: tuple[int, int],
    channels: int,
    *,
    weights: str | None = None,
    sha256: str | None = None,
    layers: tuple[Layer, ...] = ("relu1_2", "relu2_2", "relu3_3", "relu4_3"),
    image_size: int | None = None,
) -> FrozenNetwork:
    """VGG-16 of ImageNet: features of the layers that Johnson et al. compare for style.

    Takes images (B, C, H, W) in [0, 1]. For content Johnson et al. compare relu2_2 alone; the code of Perceptual MAE's
    authors compares [pool1, pool2, pool3].

    Options:
        weights: torchvision's file vgg16-397923af.pth, a name of `pmae weights list`, or "random"; must be given [none]
        sha256: SHA-256 that the file must have, or its first 8 digits or more; null checks none [none]
        layers: layers whose features are compared [Johnson et al.]
        image_size: pixels of the shorter side to which images are enlarged for it; null: as they are [ours]

    Raises ValueError for unknown layers.
    """
    if not layers or not set(layers) <= _INDICES.keys():
        raise ValueError(f"vgg16 has no layers {list(layers)}; choose from: {', '.join(_INDICES)}")
    with torch.device("meta"):
        trunk = models.vgg16(weights=None).features
    taps = Taps(trunk, [str(_INDICES[layer]) for layer in layers])
    frozen = FrozenNetwork("vgg16", taps, size, channels, *IMAGENET, image_size)
    return with_weights(frozen, weights, sha256, lambda name: name.replace("layers.", "features.", 1))
