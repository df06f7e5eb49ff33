"""Structural similarity: SSIM, MS-SSIM, and SSIM with the window of Perceptual MAE's loss."""

from functools import partial

import torch
from torch import Tensor

from perceptual_mae.evaluation.metrics.protocol import Measure, Setting, UnavailableError
from perceptual_mae.losses.ms_ssim import GAUSSIAN_WINDOW, ssim_map

LARGEST_TOO_SMALL = (GAUSSIAN_WINDOW - 1) * 2**4
"""Five scales with a window of 11 pixels on the coarsest need more pixels than this (Wang et al. 2003)."""


def prepare_ssim(setting: Setting) -> Measure:
    """Return SSIM's map (B, C, H - 10, W - 10) under a Gaussian of 11 pixels, sigma 1.5, without padding (kornia)."""
    _check_side(setting, GAUSSIAN_WINDOW)
    from kornia.metrics import ssim  # a second to import, and only scores need it

    def measure(fake: Tensor, real: Tensor) -> Tensor:
        with torch.autocast(fake.device.type, enabled=False):
            return ssim(fake, real, GAUSSIAN_WINDOW, max_val=1.0, eps=0.0, padding="valid")

    return measure


def prepare_box_ssim(setting: Setting) -> Measure:
    """Return SSIM's map under 3x3 means on reflect-padded images, as in Perceptual MAE's equation 2."""
    _check_side(setting, 2)
    return partial(ssim_map, window="box")


def prepare_ms_ssim(setting: Setting) -> Measure:
    """Return MS-SSIM over five scales, from pytorch-msssim."""
    _check_side(setting, LARGEST_TOO_SMALL + 1)
    from pytorch_msssim import ms_ssim

    def measure(fake: Tensor, real: Tensor) -> Tensor:
        with torch.autocast(fake.device.type, enabled=False):
            value: Tensor = ms_ssim(fake, real, data_range=1.0, size_average=False)
        return value

    return measure


def _check_side(setting: Setting, smallest: int) -> None:
    if min(setting.size) < smallest:
        raise UnavailableError(
            f"needs images of at least {smallest} pixels, and these have {setting.size[0]}x{setting.size[1]}; "
            "score larger images"
        )
