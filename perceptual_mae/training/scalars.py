"""What a step tells about itself: scalars by name, detached, on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from discriminators import DiscriminatorOutput

Scalars = dict[str, Tensor]


def mean_of(seen: Sequence[Scalars]) -> Scalars:
    """Average each scalar over the micro-batches that report it."""
    names = {name: None for scalars in seen for name in scalars}
    return {name: torch.stack([scalars[name] for scalars in seen if name in scalars]).mean() for name in names}


@torch.no_grad()
def verdict(on_real: DiscriminatorOutput, on_fake: DiscriminatorOutput, center: float) -> Scalars:
    """Return the mean logits and the share of images judged right, by each image's mean logit against `center`."""
    real, fake = (output.logits.float().flatten(1).mean(1) for output in (on_real, on_fake))
    right = torch.stack([(real > center).float().mean(), (fake < center).float().mean()])
    names = ("real", "fake", "accuracy_real", "accuracy_fake")
    values = (real.mean(), fake.mean(), *right)
    return {f"discriminator/{name}": value for name, value in zip(names, values, strict=True)}


@torch.no_grad()
def variety(fake: Tensor, real: Tensor) -> Tensor:
    """Return how much reconstructions (B, C, H, W) differ from image to image, relative to the originals (about 1)."""
    return fake.std(0).mean() / real.std(0).mean().clamp_min(1e-6)
