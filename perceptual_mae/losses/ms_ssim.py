"""Multi-scale structural similarity: the paper's mixture with L1, and the standard MS-SSIM of Wang et al.

Both read level 0 of the pyramids, images (B, C, H, W) in [0, 1], and pool it themselves. Windowed variances are small
differences of large numbers, so everything here runs in float32 (or float64) with autocast off.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from perceptual_mae.images import Pyramid, constant, pyramid

C1, C2 = 0.01**2, 0.03**2  # SSIM's constants for images whose range is 1
WANG_EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, finest scale first
GAUSSIAN_WINDOW = 11
PAPER_LEVELS = 4  # Perceptual MAE eq. 2
FLOOR = 1e-4  # where a contrast term leaves its power law: below it the slope explodes, below 0 there is no power
LEAK = 0.1  # slope below the floor


def ms_ssim(
    fake: Pyramid,
    real: Pyramid,
    *,
    form: Literal["paper", "wang"] = "paper",
    alpha: float = 0.85,
    reduction: Literal["mean", "sum"] = "mean",
    levels: Annotated[int, Field(ge=1, le=16)] | None = None,
    window: Annotated[int, Field(ge=3, le=1023)] = 11,
) -> Tensor:
    """Multi-scale structural dissimilarity of images in [0, 1]; 0 for identical images.

    fake, real: level 0 is (B, C, H, W) in [0, 1]; lower levels are not read.

    form "paper" (Perceptual MAE eq. 2): at each scale alpha * (1 - SSIM) / 2 + (1 - alpha) * L1, with SSIM in 3x3 means
    on reflect-padded images; the mean (or sum) over scales. A scale fits if its shorter side has 2 pixels (reflection
    needs them): 4 scales from 16 pixels on, 3 at 8.

    form "wang": 1 - MS-SSIM with a Gaussian of `window` pixels, sigma 1.5, without padding. A scale fits if its shorter
    side holds the window: 5 scales above 160 pixels, 2 at 32 (3 with window 7); fewer scales share out the exponents
    of all five. A term below 1e-4 stays there in the product, and its shortfall is subtracted with slope 0.1 times its
    exponent, so that images of opposite contrast keep a gradient; the loss can therefore reach 1.1.

    Options:
        form: "paper" mixes SSIM of 3x3 means with L1 at each scale; "wang" is 1 - MS-SSIM of Wang et al. 2003 [paper]
        alpha: share of SSIM against L1, in [0, 1]; of form paper [paper]
        reduction: "mean" or "sum" over scales; of form paper [paper]
        levels: largest number of scales; null is 4 for form paper, 5 for form wang [paper]
        window: odd side of the Gaussian window in pixels; of form wang [Wang et al. 2003]

    Raises ValueError where no scale fits.
    """
    if fake[0].shape != real[0].shape:
        raise ValueError(f"fake images {tuple(fake[0].shape)} do not match real images {tuple(real[0].shape)}")
    if levels is not None and levels < 1:
        raise ValueError(f"levels must be 1 or more, not {levels}")
    full = torch.promote_types(fake[0].dtype, torch.float32)
    with torch.autocast(fake[0].device.type, enabled=False):
        fake_image, real_image = fake[0].to(full), real[0].to(full)
        if form == "paper":
            return _paper(fake_image, real_image, alpha, reduction, levels or PAPER_LEVELS)
        if form == "wang":
            return _wang(fake_image, real_image, levels or len(WANG_EXPONENTS), window)
    raise ValueError(f"unknown form {form!r}; choose from: paper, wang")


def ssim_map(fake: Tensor, real: Tensor, *, window: Literal["gaussian", "box"] = "gaussian") -> Tensor:
    """Similarity at the pixels of images (B, C, H, W) in [0, 1], in [-1, 1]: float32 (or float64).

    window "gaussian": Wang et al. 2004, 11 pixels, sigma 1.5, without padding, so that the map (B, C, H - 10, W - 10)
    lacks a border of 5. "box": Perceptual MAE's 3x3 means on reflect-padded images, (B, C, H, W). Raises ValueError
    where images are too small.
    """
    if fake.shape != real.shape:
        raise ValueError(f"fake images {tuple(fake.shape)} do not match real images {tuple(real.shape)}")
    smallest = {"gaussian": GAUSSIAN_WINDOW, "box": 2}[window]
    if min(fake.shape[-2:]) < smallest:
        raise ValueError(
            f"ssim needs images of at least {smallest} pixels, but the shorter side has {min(fake.shape[-2:])}"
        )
    full = torch.promote_types(fake.dtype, torch.float32)
    with torch.autocast(fake.device.type, enabled=False):
        fake, real = fake.to(full), real.to(full)
        blur = _box if window == "box" else partial(_gaussian, kernel=_gaussian_kernel(GAUSSIAN_WINDOW, fake))
        luminance, contrast = _similarity(fake, real, blur)
        return luminance * contrast


def _paper(fake: Tensor, real: Tensor, alpha: float, reduction: str, most: int) -> Tensor:
    """Return `ms_ssim` in form paper, a scalar, of images (B, C, H, W) in [0, 1]."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], not {alpha}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"unknown reduction {reduction!r}; choose from: mean, sum")
    side = min(fake.shape[-2:])
    levels = sum(side >= 2 * 2**halvings for halvings in range(most))
    _check_fits(levels, side, 2)
    losses = []
    for fake_level, real_level in zip(pyramid(fake, levels), pyramid(real, levels), strict=True):
        luminance, contrast = _similarity(fake_level, real_level, _box)
        dissimilarity = ((1 - luminance * contrast) / 2).clamp(0, 1).mean()
        losses.append(alpha * dissimilarity + (1 - alpha) * (fake_level - real_level).abs().mean())
    total = torch.stack(losses).sum()
    return total / levels if reduction == "mean" else total


def _wang(fake: Tensor, real: Tensor, most: int, window: int) -> Tensor:
    """Return `ms_ssim` in form wang, a scalar, of images (B, C, H, W) in [0, 1]."""
    if window < 3 or window % 2 == 0:
        raise ValueError(f"window must be an odd number of pixels from 3 on, not {window}")
    side = min(fake.shape[-2:])
    levels = sum(side > (window - 1) * 2**halvings for halvings in range(min(most, len(WANG_EXPONENTS))))
    _check_fits(levels, side, window)
    # The published exponents sum to 1.0001; that sum is kept, so that five scales use them unchanged.
    exponents = constant(WANG_EXPONENTS[:levels], fake)
    exponents = exponents * (sum(WANG_EXPONENTS) / sum(WANG_EXPONENTS[:levels]))
    blur = partial(_gaussian, kernel=_gaussian_kernel(window, fake))

    terms = []
    for level in range(levels):
        luminance, contrast = _similarity(fake, real, blur)
        terms.append((luminance * contrast if level == levels - 1 else contrast).mean(dim=(2, 3)))
        if level < levels - 1:
            # Odd sides gain a border of zeros as in the reference implementations, and so round up.
            fake, real = (F.avg_pool2d(x, 2, padding=(x.shape[2] % 2, x.shape[3] % 2)) for x in (fake, real))
    similarity = torch.stack(terms, dim=-1)  # (B, C, levels)
    product = (similarity.clamp(min=FLOOR).log() * exponents).sum(dim=-1).exp()
    shortfall = ((FLOOR - similarity).clamp(min=0) * exponents).sum(dim=-1)
    return 1 - (product - LEAK * shortfall).mean()


def _check_fits(levels: int, side: int, smallest: int) -> None:
    if levels < 1:
        raise ValueError(f"ms_ssim needs images of at least {smallest} pixels, but the shorter side has {side}")


def _similarity(fake: Tensor, real: Tensor, blur: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Return luminance and contrast maps (B, C, H', W'), whose product is SSIM, under one local average."""
    moments = blur(torch.cat((fake, real, fake * fake, real * real, fake * real)))
    fake_mean, real_mean, fake_square, real_square, product = moments.chunk(5)
    means = fake_mean * real_mean
    squares = fake_mean.square() + real_mean.square()
    luminance = (2 * means + C1) / (squares + C1)
    contrast = (2 * (product - means) + C2) / (fake_square + real_square - squares + C2)
    return luminance, contrast


def _box(images: Tensor) -> Tensor:
    """Average 3x3 pixels of reflect-padded images (B, C, H, W); shifted sums are 2 to 10 times faster on CPUs."""
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    rows = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9


def _gaussian_kernel(window: int, like: Tensor) -> Tensor:
    """Return weights (C, 1, 1, window) of sigma 1.5 and sum 1 for images like (B, C, H, W)."""
    offsets = torch.arange(window, device=like.device, dtype=like.dtype) - window // 2
    weights = torch.exp(-offsets.square() / (2 * 1.5**2))
    return (weights / weights.sum()).expand(like.shape[1], 1, 1, window)


def _gaussian(images: Tensor, kernel: Tensor) -> Tensor:
    """Average images (B, C, H, W) under a separable Gaussian (C, 1, 1, window), without padding."""
    channels = images.shape[1]
    return F.conv2d(F.conv2d(images, kernel, groups=channels), kernel.mT, groups=channels)
