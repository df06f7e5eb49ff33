"""Adversarial losses of discriminator and generator on raw logits.

Logits are (B, ...), never squashed. Every loss is taken per logit and then averaged over batch and positions, real and
fake apart, in float32.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from perceptual_mae.images import mask_image

Kind = Literal["least_squares", "hinge", "logistic", "relativistic"]
Half = Literal["both", "real_only"]
Targets = Literal["image", "position"]


@dataclass(frozen=True)
class AdversarialLoss:
    """A pair of objectives: each field maps logits to losses of the same shape.

    pairs: whether logits are compared in pairs, each of an image and its reconstruction: the fields then take their
    differences, real - fake for `on_real` and fake - real for `on_generated`, and `on_fake` adds nothing.
    """

    on_real: Callable[[Tensor], Tensor]
    on_fake: Callable[[Tensor], Tensor]
    on_generated: Callable[[Tensor], Tensor]
    center: float
    """The logit (or difference) at which the discriminator is undecided; above it, it classifies as real."""
    pairs: bool = False

    def compared(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the fields take of real and fake images: logits (B, ...), in float32 or wider, or differences."""
        real, fake = _full(real_logits), _full(fake_logits)
        return (real - fake, fake - real) if self.pairs else (real, fake)

    def image_scores(
        self, real_logits: Tensor, fake_logits: Tensor, hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return numbers (B,) of real and of fake images that `center` tells apart: means of what is compared.

        hidden: share (B, h, w) of each position that is reconstructed, where fake images count by that alone.
        """
        real, fake = self.compared(real_logits, fake_logits)
        return real.flatten(1).mean(1), fake.flatten(1).mean(1) if hidden is None else _hidden_mean(fake, hidden)


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
    # RpGAN, as R3GAN trains it: an image against its own reconstruction.
    "relativistic": AdversarialLoss(
        on_real=lambda difference: F.softplus(-difference),
        on_fake=torch.zeros_like,
        on_generated=lambda difference: F.softplus(-difference),
        center=0.0,
        pairs=True,
    ),
}


def adversarial_discriminator(
    real_logits: Tensor,
    fake_logits: Tensor,
    mask: Tensor | None = None,
    grid: tuple[int, int] | None = None,
    *,
    kind: Kind = "least_squares",
    half: Half = "both",
    targets: Targets = "image",
) -> Tensor:
    """Adversarial loss of the discriminator: low for high logits of real images and low logits of fake ones.

    real_logits, fake_logits: (B, ...), raw. mask (B, L), 1 or True = hidden, of a grid of patches: read for targets by
    position.

    Options:
        kind: "least_squares" (LS-GAN), "hinge" (geometric GAN), "logistic" (non-saturating cross-entropy) or
            "relativistic" (pairs of an image and its reconstruction) [paper]
        half: where least squares have the factor 1/2: "both" terms (LS-GAN), or "real_only" (eq. 4 as printed) [LS-GAN]
        targets: what of a reconstruction is fake: the whole "image", or each "position" of a map of logits as far as
            it is hidden [paper]

    Raises ValueError for options that do not go together, and for targets by position where logits are no map.
    """
    loss = _choose(kind, half, targets)
    real, fake = loss.compared(real_logits, fake_logits)
    on_fake = loss.on_fake(fake)
    if targets == "position":
        hidden = hidden_share(mask, grid, fake)
        on_fake = hidden * on_fake + (1 - hidden) * loss.on_real(fake)  # visible patches are the original's
    return loss.on_real(real).mean() + (2.0 if half == "real_only" else 1.0) * on_fake.mean()


def adversarial_generator(
    fake_logits: Tensor,
    real_logits: Tensor | None = None,
    mask: Tensor | None = None,
    grid: tuple[int, int] | None = None,
    *,
    kind: Kind = "least_squares",
    half: Half = "both",
    targets: Targets = "image",
) -> Tensor:
    """Adversarial loss of the generator: low for high logits of its images (Perceptual MAE eq. 5).

    fake_logits: (B, ...), raw; real_logits, of the same images, are read by "relativistic"; mask (B, L) and grid by
    targets by position.

    Options:
        kind: "least_squares" (LS-GAN), "hinge" (geometric GAN), "logistic" (non-saturating cross-entropy) or
            "relativistic" (RpGAN: each image against its own reconstruction), of the discriminator's loss too [paper]
        half: where the discriminator's least squares have the factor 1/2: "both" terms (LS-GAN), or "real_only"
            (Perceptual MAE eq. 4 as printed) [LS-GAN]
        targets: what of a reconstruction the discriminator learns to be fake: the whole "image", or each "position" of
            its map of logits as far as it is hidden (LaMa); needs discriminator.fake: composite [paper]

    Raises ValueError for options that do not go together, and for targets by position where logits are no map.
    """
    loss = _choose(kind, half, targets)
    fake = _full(fake_logits)
    if loss.pairs:
        if real_logits is None:
            raise ValueError(f"kind {kind} compares logits in pairs; give it the real ones, too")
        _, fake = loss.compared(real_logits, fake_logits)
    on_generated = loss.on_generated(fake)
    if targets == "position":
        return _hidden_mean(on_generated, hidden_share(mask, grid, fake)).mean()
    return on_generated.mean()


def unread_by_generator(options: Mapping[str, object]) -> frozenset[str]:
    """Name the fields that the generator's loss leaves unread under these options."""
    pairs = ADVERSARIAL[str(options.get("kind", "least_squares"))].pairs
    return frozenset() if pairs else frozenset({"real_logits"})


def hidden_share(mask: Tensor | None, grid: tuple[int, int] | None, logits: Tensor) -> Tensor:
    """Return which share of each position of a map of logits (B, h, w) is hidden by a mask: (B, h, w).

    mask: (B, L), or of more images, of which the logits are those of the first.
    """
    if mask is None or grid is None or logits.ndim != 3:
        raise ValueError(
            f"targets: position needs a map of logits (B, h, w) and masks, not logits {tuple(logits.shape)}; set "
            "discriminator.form=patch, or targets: image"
        )
    mask = mask[: len(logits)].to(logits.device, non_blocking=True)
    return mask_image(mask, grid, (logits.shape[1], logits.shape[2]))[:, 0].to(logits.dtype)


def _hidden_mean(values: Tensor, hidden: Tensor) -> Tensor:
    """Return each image's mean (B,) of values (B, h, w) over what of them is hidden, 0 where nothing is."""
    return (hidden * values).sum((1, 2)) / hidden.sum((1, 2)).clamp_min(torch.finfo(hidden.dtype).tiny)


def _choose(kind: str, half: str, targets: str) -> AdversarialLoss:
    if kind not in ADVERSARIAL:
        raise ValueError(f"unknown adversarial kind {kind!r}; choose from: {', '.join(ADVERSARIAL)}")
    if half not in ("both", "real_only"):
        raise ValueError(f"unknown half {half!r}; choose from: both, real_only")
    if half == "real_only" and kind != "least_squares":
        raise ValueError(f"half: real_only belongs to kind least_squares, not {kind}; leave it out")
    if targets not in ("image", "position"):
        raise ValueError(f"unknown targets {targets!r}; choose from: image, position")
    if targets == "position" and (ADVERSARIAL[kind].pairs or half == "real_only"):
        raise ValueError(f"targets: position goes with whole labels, not with kind {kind}, half {half}; use image")
    return ADVERSARIAL[kind]
