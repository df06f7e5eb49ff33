"""Discriminators of image pyramids, usable alone: `DISCRIMINATORS[kind](resolutions, channels, **options)`."""

from torch import nn

from discriminators.contract import Discriminator, DiscriminatorOutput
from discriminators.ls_gan import LSGAN

DISCRIMINATORS: dict[str, type[nn.Module]] = {
    "ls_gan": LSGAN,
}

__all__ = ["DISCRIMINATORS", "Discriminator", "DiscriminatorOutput"]
