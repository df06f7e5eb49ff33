"""Pages of predictions next to the truth: which images they show, colours of classes, frames."""

import colorsys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from perceptual_mae.images import Size


def best_and_worst(per_image: dict[int, float], count: int) -> list[tuple[str, int]]:
    """Return (what it is, index) of the best and worst images, each once, and of the first ones.

    The first are the same whatever an encoder makes of them, so that pages can be compared.
    """
    ordered = sorted(per_image, key=lambda index: (-per_image[index], index))
    best = ordered[: min(count, -(-len(ordered) // 2))]
    worst = [index for index in ordered[-count:] if index not in best]
    fixed = sorted(per_image)[:count]
    named: dict[str, Sequence[Any]] = {"best": best, "worst": worst[::-1], "image": fixed}
    return [(f"{what} {place}", index) for what, them in named.items() for place, index in enumerate(them, start=1)]


def palette(classes: int) -> Tensor:
    """Return a colour for each class, uint8 (K, 3): hues a golden section apart, in three lightnesses."""
    colors = [
        colorsys.hls_to_rgb(number * 0.618034 % 1, (0.45, 0.65, 0.3)[number % 3], 0.85) for number in range(classes)
    ]
    return (torch.tensor(colors) * 255).round().to(torch.uint8)


def framed(picture: Tensor, largest: Size) -> Tensor:
    """Return a picture uint8 (3, h, w) of at most the largest size inside a white frame, (3, *largest)."""
    height, width = picture.shape[-2:]
    return F.pad(picture, (0, largest[1] - width, 0, largest[0] - height), value=255)
