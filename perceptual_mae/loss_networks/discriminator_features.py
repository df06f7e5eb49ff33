"""The discriminator as loss network: itself (Perceptual MAE eq. 3), or a copy that follows it now and then."""

import copy

import torch
from torch import Tensor, nn

from perceptual_mae.images import Pyramid
from perceptual_mae.loss_networks.frozen import Features


def live_discriminator(discriminator: nn.Module) -> nn.Module:
    """Return the discriminator itself: its features are those of the pass that the adversarial term reads."""
    return discriminator


class Snapshot(nn.Module):
    """A copy of the discriminator that follows it in every step of the epochs 1, 1 + every, ... and stands in between.

    So does the code of Perceptual MAE's authors, with every = 5. A discriminator that moves under the features that
    are compared is a moving target; an old one knows less. The copy is part of a run's checkpoints.
    """

    def __init__(self, discriminator: nn.Module, *, every: int = 5) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"snapshot needs every >= 1 (epochs), not {every}")
        self.every = every
        self.copy = copy.deepcopy(discriminator).requires_grad_(False).eval()

    def follow(self, discriminator: nn.Module, epoch: int) -> None:
        """Take over the discriminator's weights if this epoch (from 1) is one to follow it in."""
        if (epoch - 1) % self.every == 0:
            with torch.no_grad():
                for own, live in zip(_tensors(self.copy), _tensors(discriminator), strict=True):
                    own.copy_(live)

    def forward(self, pyramid: Pyramid) -> Features:
        """Return the features of a pyramid, as the discriminator is shown it."""
        features: Features = self.copy(pyramid).features
        return features

    def train(self, mode: bool = True) -> "Snapshot":
        """Stay in evaluation mode."""
        del mode
        return super().train(False)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
