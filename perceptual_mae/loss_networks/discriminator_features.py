"""The discriminator as loss network: itself (Perceptual MAE eq. 3), or a copy that is updated now and then."""

import copy

import torch
from torch import Tensor, nn

from perceptual_mae.images import Pyramid
from perceptual_mae.loss_networks.frozen import Features


def live_discriminator(discriminator: nn.Module) -> nn.Module:
    """The discriminator itself: the features of the pass that also gives the adversarial term its logits."""
    return discriminator


class Snapshot(nn.Module):
    """A copy of the discriminator, updated at every step of epochs 1, 1 + every, ... and constant in between.

    A discriminator that learns while its features are compared is a moving target; an old one has learned less. The
    copy is part of a run's checkpoints.

    Options:
        every: epochs from one epoch of updates to the next [paper's code]
    """

    def __init__(self, discriminator: nn.Module, *, every: int = 5) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"snapshot needs every >= 1 (epochs), not {every}")
        self.every = every
        self.copy = copy.deepcopy(discriminator).requires_grad_(False).eval()

    def follow(self, discriminator: nn.Module, epoch: int) -> None:
        """Copy the discriminator's weights if this epoch (from 1) is one of updates."""
        if (epoch - 1) % self.every == 0:
            with torch.no_grad():
                for own, live in zip(_tensors(self.copy), _tensors(discriminator), strict=True):
                    own.copy_(live)

    def forward(self, pyramid: Pyramid) -> Features:
        """Return the features (B, C_j, H_j, W_j) of a pyramid (B, C, H_s, W_s), augmented as the discriminator's."""
        features: Features = self.copy(pyramid).features
        return features

    def train(self, mode: bool = True) -> "Snapshot":
        """Stay in evaluation mode."""
        del mode
        return super().train(False)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
