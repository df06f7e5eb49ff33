"""Discriminators of image pyramids, usable alone: `DISCRIMINATORS[kind](resolutions, channels, **options)`.

A kind whose first parameter is called `encoder` is given the generator's encoder before these.
"""

from collections.abc import Callable

from torch import nn

from discriminators.augmentation.ada import ADA
from discriminators.augmentation.diffaug import DiffAug
from discriminators.contract import Augmentation, Discriminator, DiscriminatorOutput
from discriminators.ls_gan import LSGAN
from discriminators.msg_gan import MSGGAN
from discriminators.penalties import PENALTIES
from discriminators.projected import Projected
from discriminators.stylegan2 import StyleGAN2
from discriminators.token import Token

DISCRIMINATORS: dict[str, type[nn.Module]] = {
    "ls_gan": LSGAN,
    "msg_gan": MSGGAN,
    "stylegan2": StyleGAN2,
    "projected": Projected,
    "token": Token,
}

AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {
    "ada": ADA,
    "diffaug": DiffAug,
}

__all__ = ["AUGMENTATIONS", "DISCRIMINATORS", "PENALTIES", "Augmentation", "Discriminator", "DiscriminatorOutput"]
