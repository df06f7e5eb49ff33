"""Differences of pixels: L1, squared error and PSNR."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def absolute_error(fake: Tensor, real: Tensor) -> Tensor:
    """Return |fake - real| (B, C, H, W)."""
    return (fake - real).abs()


def squared_error(fake: Tensor, real: Tensor) -> Tensor:
    """Return (fake - real)^2 (B, C, H, W)."""
    return (fake - real).square()


def decibels(error: Tensor) -> Tensor:
    """Return the PSNR in dB of mean squared errors of images in [0, 1]; inf where both are identical."""
    return -10 * torch.log10(error)


def summarise_psnr(name: str, scores: Tensor) -> Mapping[str, Any]:
    """Return the mean over images that are not identical, how many are (their PSNR is inf), and the PSNR of all pixels.

    The pooled one belongs to the mean squared error of all images together. Both are the string "inf" where every
    image is identical: JSON knows no infinity.
    """
    finite = scores[scores.isfinite()]
    pooled = float(decibels((10 ** (-scores / 10)).mean()))
    return {
        name: float(finite.mean()) if len(finite) else "inf",
        f"{name}_pooled": pooled if math.isfinite(pooled) else "inf",
        f"{name}_identical_images": len(scores) - len(finite),
    }
