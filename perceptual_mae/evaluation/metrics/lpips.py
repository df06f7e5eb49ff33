"""LPIPS (*The Unreasonable Effectiveness of Deep Features*, Zhang et al.), version 0.1: linear heads and all."""

from typing import Literal

import torch
from torch import Tensor

from perceptual_mae.evaluation.metrics.protocol import Measure, Setting, UnavailableError
from perceptual_mae.loss_networks.frozen import Features, FrozenNetwork
from perceptual_mae.loss_networks.lpips import lpips_trunk

Net = Literal["alex", "vgg", "squeeze"]

TRUNKS: dict[Net, str] = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
SHA256 = {"alexnet": "7be5be79", "vgg16": "397923af", "squeezenet1_1": "b8a52dc0"}
SMALLEST_SIDE = 32
PIXELS_AT_ONCE = 1 << 20
"""More would take gigabytes: the first layer of VGG has 64 numbers for each pixel."""


def prepare(setting: Setting, net: Net) -> Measure:
    """Return LPIPS with the trunk `net`, its weights from the user's file; never with random ones."""
    if min(setting.size) < SMALLEST_SIDE:
        raise UnavailableError(
            f"needs images of at least {SMALLEST_SIDE} pixels, and these have {setting.size[0]}x{setting.size[1]}; "
            "score larger images"
        )
    name = TRUNKS[net]
    path = setting.find_weights(name)
    try:
        network = lpips_trunk(
            setting.size, setting.channels, net=net, weights=str(path), sha256=SHA256[name], calibrated=True
        )
    except ValueError as mistake:
        raise UnavailableError(f"{mistake}; fetch it again: pmae weights fetch {name}") from mistake
    return distance(network.to(setting.device))


def distance(network: FrozenNetwork) -> Measure:
    """Return the squared distance (B,) between calibrated features, averaged over places and summed over layers."""

    def measure(fake: Tensor, real: Tensor) -> Tensor:
        at_once = max(1, PIXELS_AT_ONCE // (fake.shape[2] * fake.shape[3]))
        parts = zip(torch.split(fake, at_once), torch.split(real, at_once), strict=True)
        return torch.cat([_distance(network(one), network(other)) for one, other in parts])

    return measure


def _distance(fake: Features, real: Features) -> Tensor:
    layers = zip(fake, real, strict=True)
    return torch.stack([(one - other).square().sum(1).mean((1, 2)) for one, other in layers]).sum(0)
