"""Discriminators of image pyramids, usable alone: `DISCRIMINATORS[kind](resolutions, channels, **options)`."""

from torch import nn

from discriminators.augmentation.ada import ADA
from discriminators.contract import Discriminator, DiscriminatorOutput
from discriminators.ls_gan import LSGAN
from discriminators.msg_gan import MSGGAN
from discriminators.penalties import PENALTIES
from discriminators.stylegan2 import StyleGAN2

DISCRIMINATORS: dict[str, type[nn.Module]] = {
    "ls_gan": LSGAN,
    "msg_gan": MSGGAN,
    "stylegan2": StyleGAN2,
}

AUGMENTATIONS: dict[str, type[ADA]] = {
    "ada": ADA,
}

__all__ = ["AUGMENTATIONS", "DISCRIMINATORS", "PENALTIES", "Discriminator", "DiscriminatorOutput"]
