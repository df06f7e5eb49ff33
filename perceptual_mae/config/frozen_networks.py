"""Frozen networks that a discriminator may be made of, as sections of a configuration."""

from perceptual_mae.config.from_signature import Choice, choice, first_parameter
from perceptual_mae.loss_networks import LOSS_NETWORKS

FROZEN_NETWORKS = {kind: make for kind, make in LOSS_NETWORKS.items() if first_parameter(make) != "discriminator"}
"""Those that no discriminator is needed for: one may be made of them."""

DEFAULT_FROZEN = "named"
"""The kind of a frozen network where none is named."""


class FrozenNetworkSection(Choice):
    """A frozen network whose features a discriminator reads, with its options; `named` where no kind is stated.

    Options:
        kind: the network whose features are read [none]
    """


FROZEN = choice(FrozenNetworkSection, FROZEN_NETWORKS, "frozen network", DEFAULT_FROZEN)
