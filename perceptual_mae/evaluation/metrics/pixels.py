"""Differences of pixels: L1, squared error, PSNR."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

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
