"""VGG-16 of ImageNet: the loss network of *Perceptual Losses for Real-Time Style Transfer* (Johnson et al.)."""

from typing import Literal

import torch
from torchvision import models

from perceptual_mae.loss_networks.frozen import IMAGENET, FrozenNetwork, Taps, with_weights

Layer = Literal[
    "relu1_2", "pool1", "relu2_2", "pool2", "relu3_3", "pool3", "relu4_3", "pool4", "relu5_3", "pool5"
]  # fmt: skip

_PLACES = {
    "relu1_2": 3, "pool1": 4, "relu2_2": 8, "pool2": 9, "relu3_3": 15,
    "pool3": 16, "relu4_3": 22, "pool4": 23, "relu5_3": 29, "pool5": 30,
}  # fmt: skip
"""Where torchvision's `features` have each layer."""


def vgg16(
    size: tuple[int, int],
    channels: int,
    *,
    weights: str | None = None,
    sha256: str | None = None,
    layers: tuple[Layer, ...] = ("relu1_2", "relu2_2", "relu3_3", "relu4_3"),
) -> FrozenNetwork:
    """Features of VGG-16; the default layers are Johnson et al.'s for style (for content they take relu2_2 alone).

    layers [pool1, pool2, pool3] are those that the code of Perceptual MAE's authors compares. weights: a file with
    torchvision's names (features.0.weight, ...), such as torchvision's own vgg16-397923af.pth, or "random".
    """
    if not layers or not set(layers) <= _PLACES.keys():
        raise ValueError(f"vgg16 has no layers {list(layers)}; choose from: {', '.join(_PLACES)}")
    with torch.device("meta"):
        trunk = models.vgg16(weights=None).features
    taps = Taps(trunk, [str(_PLACES[layer]) for layer in layers])
    frozen = FrozenNetwork("vgg16", taps, size, channels, *IMAGENET)
    return with_weights(frozen, weights, sha256, lambda name: name.replace("layers.", "features.", 1))
