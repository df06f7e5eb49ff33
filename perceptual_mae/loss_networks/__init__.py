"""Networks whose features are compared in fake and real images, one kind a file.

A kind is built as `kind(size, channels, *, options)`, with the height and width of the images, and takes images
(B, C, H, W) in [0, 1]; or, where its first parameter is called `discriminator`, as `kind(discriminator, *, options)`,
and then takes the pyramid that the discriminator is shown. Each returns features (B, C_j, H_j, W_j), shallow to deep.
"""

from collections.abc import Callable

from torch import nn

from perceptual_mae.loss_networks.collection import LIVE, FeatureExtractors, LossNetworks
from perceptual_mae.loss_networks.discriminator_features import Snapshot, live_discriminator
from perceptual_mae.loss_networks.dvae import dvae
from perceptual_mae.loss_networks.frozen import Features, FrozenNetwork
from perceptual_mae.loss_networks.library import named
from perceptual_mae.loss_networks.lpips import lpips_trunk
from perceptual_mae.loss_networks.vgg import vgg16

LOSS_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    LIVE: live_discriminator,
    "snapshot": Snapshot,
    "vgg16": vgg16,
    "dvae": dvae,
    "lpips": lpips_trunk,
    "named": named,
}

__all__ = [
    "LIVE",
    "LOSS_NETWORKS",
    "FeatureExtractors",
    "Features",
    "FrozenNetwork",
    "LossNetworks",
]
