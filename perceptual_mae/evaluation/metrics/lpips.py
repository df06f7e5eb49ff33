"""LPIPS (*The Unreasonable Effectiveness of Deep Features*, Zhang et al.), version 0.1: linear heads and all."""

from typing import Literal

import torch
from torch import Tensor

from perceptual_mae.evaluation.metrics.contract import Measure, Setting, UnavailableError
from perceptual_mae.loss_networks.frozen import FrozenNetwork
from perceptual_mae.loss_networks.lpips_trunk import lpips_trunk

Net = Literal["alex", "vgg", "squeeze"]

TRUNKS: dict[Net, str] = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
SHA256 = {"alexnet": "7be5be79", "vgg16": "397923af", "squeezenet1_1": "b8a52dc0"}
SMALLEST_SIDE = 32


def prepare(setting: Setting, net: Net) -> Measure:
    """Return LPIPS with the trunk `net`, its weights from the user's file; never with random ones."""
    if min(setting.size) < SMALLEST_SIDE:
        raise UnavailableError(
            f"needs images of at least {SMALLEST_SIDE} pixels, and these have {setting.size[0]}x{setting.size[1]}; "
            "score a run of larger images"
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
        pairs = zip(network(fake), network(real), strict=True)
        return torch.stack([(one - other).square().sum(1).mean((1, 2)) for one, other in pairs]).sum(0)

    return measure
