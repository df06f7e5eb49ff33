"""Feature networks and the images they get: as bytes, in colour, resized without aliasing."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from perceptual_mae.images import Size, to_uint8

CLEAN_RESIZE = "bicubic, antialiased, not rounded (clean-fid)"
"""What metadata say of images that are resized here."""


class ExtractedFeatures(NamedTuple):
    """Features (B, D) of images and, where the network is a classifier, class probabilities (B, K)."""

    features: Tensor
    probabilities: Tensor | None


@dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network through which sets of images are compared. `name` stands in the keys of its scores.

    `module` takes RGB images (B, 3, h, w), float32 from 0 to 255, and returns features (B, D), or maps or tokens that
    are averaged to them, or a pair of these and logits (B, K). Images are resized to `size` (None: left as they are).
    `metadata` goes into the report.
    """

    name: str
    module: nn.Module
    size: Size | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def extract(self, images: Tensor) -> ExtractedFeatures:
        """Return the features of images (B, C, H, W) in [0, 1], of 1 or 3 channels, in float32 with autocast off.

        Images are rounded to bytes first, as in a file.
        """
        pixels = to_uint8(images).expand(-1, 3, -1, -1)
        size = (images.shape[2], images.shape[3])
        resized = pixels.float() if self.size in (None, size) else clean_resize(pixels, self.size).to(images.device)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            output = self.module(resized)
        features, logits = output if isinstance(output, (tuple, list)) else (output, None)
        return ExtractedFeatures(pool(features).float(), None if logits is None else logits.float().softmax(1))


class Normalised(nn.Module):
    """A network that expects (x - mean) / std of images in [0, 1], given pixels from 0 to 255."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Any:
        return self.network((pixels / 255 - self.mean) / self.std)


def pool(features: Tensor) -> Tensor:
    """Return (B, D) of maps (B, D, h, w) or tokens (B, L, D) by averaging, or the features as they are."""
    if features.ndim == 4:
        return features.mean((2, 3))
    return features.mean(1) if features.ndim == 3 else features


def clean_resize(pixels: Tensor, size: Size) -> Tensor:
    """Return bytes (B, 3, H, W) as float32 (B, 3, h, w), resized by clean-fid: Pillow's bicubic, without rounding."""
    from cleanfid.resize import make_resizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clean-fid speaks an older Pillow
        resize = make_resizer("PIL", False, "bicubic", (size[1], size[0]))
        rows = [resize(image) for image in pixels.permute(0, 2, 3, 1).cpu().numpy()]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()
