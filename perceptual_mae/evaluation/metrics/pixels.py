"""Pixels: L1, squared error, PSNR, and how much they vary within a patch."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from perceptual_mae.evaluation.metrics.protocol import Measure, Setting
from perceptual_mae.images import patchify, unpatchify

PSNR_CEILING = 100.0
"""The PSNR of a mean squared error of 1e-10 or less: beyond it rounding errors would rank methods."""


def absolute_error(fake: Tensor, real: Tensor) -> Tensor:
    """Return |fake - real| (B, C, H, W)."""
    return (fake - real).abs()


def squared_error(fake: Tensor, real: Tensor) -> Tensor:
    """Return (fake - real)^2 (B, C, H, W)."""
    return (fake - real).square()


def decibels(error: Tensor) -> Tensor:
    """Return the PSNR in dB of mean squared errors (of any shape) of images in [0, 1], at most 100."""
    return (-10 * torch.log10(error)).clamp_max(PSNR_CEILING)


def summarise_psnr(name: str, scores: Tensor) -> Mapping[str, Any]:
    """Return the mean of PSNRs (N,), the PSNR of their mean squared error, and how many are at the ceiling."""
    return {
        name: float(scores.mean()),
        f"{name}_pooled": float(decibels((10 ** (-scores / 10)).mean())),
        f"{name}_identical_images": int((scores == PSNR_CEILING).sum()),
    }


def prepare_patch_std(setting: Setting) -> Measure:
    """Return the measure of how much the reconstruction varies within the patches of the run's generator."""
    return partial(patch_std, patch_size=setting.patch_size)


def patch_std(fake: Tensor, real: Tensor, *, patch_size: int) -> Tensor:
    """Return a map (B, C, H, W): at each pixel of fake the standard deviation of that channel over the pixel's patch.

    It is the population's. `real` is not read: a score relative to the original divides by the original's own map.
    """
    rows, columns = fake.shape[2] // patch_size, fake.shape[3] // patch_size
    pixels = patchify(fake, patch_size).view(len(fake), rows * columns, -1, fake.shape[1])  # (B, L, p*p, C)
    spread = pixels.std(2, correction=0, keepdim=True).expand_as(pixels)
    return unpatchify(spread.flatten(2), patch_size, (rows, columns))
