"""The loss networks of a run by key; terms with the same settings share one."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import nn

from perceptual_mae.images import Pyramid
from perceptual_mae.loss_networks.frozen import Features

LIVE = "discriminator"
"""The key of the discriminator itself, as opposed to copies of it."""

FeatureExtractors = Mapping[str, Callable[[Pyramid], Features]]
"""By key, functions from a pyramid of images to a network's features."""


class LossNetworks:
    """Networks other than the live discriminator: `fixed` ones take images, `copies` the discriminator's pyramids.

    Only `copies.state_dict()` changes in a run; fixed networks are loaded from their files.
    """

    def __init__(
        self, fixed: Mapping[str, nn.Module] | None = None, copies: Mapping[str, nn.Module] | None = None
    ) -> None:
        self.fixed, self.copies = nn.ModuleDict(fixed or {}), nn.ModuleDict(copies or {})
        for networks in (self.fixed, self.copies):
            networks.requires_grad_(False).eval()

    def to(self, device: torch.device) -> "LossNetworks":
        """Move all networks to a device."""
        self.fixed.to(device)
        self.copies.to(device)
        return self

    def follow(self, discriminator: nn.Module, epoch: int) -> None:
        """Update the copies of the discriminator that are due in this epoch (from 1)."""
        for copy in self.copies.values():
            copy.follow(discriminator, epoch)  # type: ignore[operator]

    def extractors(
        self, show: Callable[[Pyramid], Pyramid], autocast: Callable[[], AbstractContextManager[None]]
    ) -> FeatureExtractors:
        """Return by key how each network's features are extracted from a pyramid; no network runs yet.

        show: the augmentation of pyramids for the discriminator and its copies. autocast: enters the precision that
        the discriminator runs in. Fixed networks take images (B, C, H, W) in [0, 1] unaugmented, in their precision.
        """

        def from_images(network: nn.Module, pyramid: Pyramid) -> Features:
            features: Features = network(pyramid[0])
            return features

        def from_shown(copy: nn.Module, pyramid: Pyramid) -> Features:
            with autocast():
                features: Features = copy(show(pyramid))
                return features

        fixed = {key: partial(from_images, network) for key, network in self.fixed.items()}
        return fixed | {key: partial(from_shown, copy) for key, copy in self.copies.items()}

    def untrained(self) -> list[str]:
        """List the keys of networks whose weights are random."""
        return [key for key, network in self.fixed.items() if getattr(network, "is_random", False)]
