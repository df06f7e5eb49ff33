"""Adversarial losses of discriminator and generator on raw logits.

Logits are (B, ...), never squashed. Every loss is taken per logit and then averaged over batch and positions, real and
fake apart, in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["least_squares", "hinge", "logistic"]
Half = Literal["both", "real_only"]


@dataclass(frozen=True)
class AdversarialLoss:
    """A pair of objectives: each field maps logits to losses of the same shape."""

    on_real: Callable[[Tensor], Tensor]
    on_fake: Callable[[Tensor], Tensor]
    on_generated: Callable[[Tensor], Tensor]
    center: float
    """The logit at which the discriminator is undecided; above it, it classifies as real."""

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor, *, half: Half = "both") -> Tensor:
        """Loss of the discriminator from logits (B, ...), a scalar; see `adversarial_discriminator`."""
        fake_factor = 2.0 if half == "real_only" else 1.0
        return self.on_real(_full(real_logits)).mean() + fake_factor * self.on_fake(_full(fake_logits)).mean()

    def generator(self, fake_logits: Tensor) -> Tensor:
        """Loss of the generator from logits (B, ...), a scalar; low where its images are classified as real."""
        return self.on_generated(_full(fake_logits)).mean()


def _full(logits: Tensor) -> Tensor:
    """Return logits (B, ...) in float32 or wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


ADVERSARIAL: dict[str, AdversarialLoss] = {
    # LS-GAN with the labels of Perceptual MAE eqs. 4 and 5: fake 0, real 1, and 1 for the generator.
    "least_squares": AdversarialLoss(
        on_real=lambda logits: (logits - 1).square() / 2,
        on_fake=lambda logits: logits.square() / 2,
        on_generated=lambda logits: (logits - 1).square() / 2,
        center=0.5,
    ),
    # Geometric GAN: the discriminator has a margin of 1 on either side.
    "hinge": AdversarialLoss(
        on_real=lambda logits: F.relu(1 - logits),
        on_fake=lambda logits: F.relu(1 + logits),
        on_generated=torch.neg,
        center=0.0,
    ),
    # The non-saturating loss of the first GANs: cross-entropy of the sigmoid, which is part of the loss.
    "logistic": AdversarialLoss(
        on_real=lambda logits: F.softplus(-logits),
        on_fake=F.softplus,
        on_generated=lambda logits: F.softplus(-logits),
        center=0.0,
    ),
}


def adversarial_discriminator(
    real_logits: Tensor, fake_logits: Tensor, *, kind: Kind = "least_squares", half: Half = "both"
) -> Tensor:
    """Adversarial loss of the discriminator: low for high logits of real images and low logits of fake ones.

    real_logits, fake_logits: (B, ...), raw.

    Options:
        kind: "least_squares" (LS-GAN), "hinge" (geometric GAN) or "logistic" (non-saturating cross-entropy) [paper]
        half: where least squares have the factor 1/2: "both" terms (LS-GAN), or "real_only" (eq. 4 as printed) [LS-GAN]

    Raises ValueError for "real_only" with another kind, which has no factor 1/2.
    """
    return _choose(kind, half).discriminator(real_logits, fake_logits, half=half)


def adversarial_generator(fake_logits: Tensor, *, kind: Kind = "least_squares", half: Half = "both") -> Tensor:
    """Adversarial loss of the generator: low for high logits of its images (Perceptual MAE eq. 5).

    fake_logits: (B, ...), raw.

    Options:
        kind: "least_squares" (LS-GAN), "hinge" (geometric GAN) or "logistic" (non-saturating cross-entropy), of the
            discriminator's loss too [paper]
        half: where the discriminator's least squares have the factor 1/2: "both" terms (LS-GAN), or "real_only"
            (Perceptual MAE eq. 4 as printed) [LS-GAN]

    Raises ValueError for "real_only" with another kind, which has no factor 1/2.
    """
    return _choose(kind, half).generator(fake_logits)


def _choose(kind: str, half: str) -> AdversarialLoss:
    if kind not in ADVERSARIAL:
        raise ValueError(f"unknown adversarial kind {kind!r}; choose from: {', '.join(ADVERSARIAL)}")
    if half not in ("both", "real_only"):
        raise ValueError(f"unknown half {half!r}; choose from: both, real_only")
    if half == "real_only" and kind != "least_squares":
        raise ValueError(f"half: real_only belongs to kind least_squares, not {kind}; leave it out")
    return ADVERSARIAL[kind]
