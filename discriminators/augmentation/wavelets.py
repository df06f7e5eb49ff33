"""Wavelet filters of adaptive augmentation: alias-free doubling and halving of an image, and gains of its octaves."""

from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from discriminators.placement import like

# Low-pass filters of the least asymmetric wavelets with 6 and with 2 vanishing moments (Daubechies).
SYM6 = (
    *(0.01540411, 0.00349071, -0.11799011, -0.04831174, 0.49105594, 0.78764114),
    *(0.33792942, -0.07263752, -0.02106029, 0.04472490, 0.00176771, -0.00780071),
)
SYM2 = (-0.12940952, 0.22414387, 0.83651630, 0.48296291)

REACH = 3
"""Pixels by which `double` shortens an image at each side, and by which the input of `halve` is longer."""

BLOCK = 16
"""Pixels that one row of a matrix product filters."""


@cache
def lowpass(taps: tuple[float, ...] = SYM6) -> Tensor:
    """Return the taps as float64 (len(taps),), scaled to sum 1."""
    kernel = torch.tensor(taps, dtype=torch.float64)
    return kernel / kernel.sum()


@cache
def _blocks() -> tuple[Tensor, Tensor]:
    """Return doubling and halving of a run of pixels as matrices (BLOCK + 6, 2 BLOCK) and (2 (BLOCK + 5), BLOCK).

    Tap 5 is on the pixel, where the filter's delay (5.1) puts it, so flips and rotations map samples to samples.
    """
    doubling = torch.zeros(BLOCK + 6, 2 * BLOCK, dtype=torch.float64)
    halving = torch.zeros(2 * (BLOCK + 5), BLOCK, dtype=torch.float64)
    for tap, weight in enumerate(lowpass()):
        for sample in range(2 * BLOCK):
            pixel, odd = divmod(sample + 2 * REACH + 5 - tap, 2)
            if not odd:
                doubling[pixel, sample] = 2 * weight
        for pixel in range(BLOCK):
            halving[2 * pixel + tap, pixel] = weight
    return doubling, halving


@cache
def _blocks_like(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return `_blocks` in a dtype on a device, sent there once."""
    with torch.inference_mode(False):  # they are kept for trainings, too
        doubling, halving = (matrix.to(device, dtype) for matrix in _blocks())
    return doubling, halving


def double(images: Tensor) -> Tensor:
    """Sample images (B, C, H, W) twice as densely: (B, C, 2(H - 6), 2(W - 6)), without the border.

    The first sample is on pixel 3, the second half a pixel after it. `halve` is the adjoint, and the inverse.
    """
    height, width = (2 * (side - 2 * REACH) for side in images.shape[-2:])
    doubling = _blocks_like(images.dtype, images.device)[0]
    return _in_blocks(_in_blocks(images, doubling, BLOCK, width).mT, doubling, BLOCK, height).mT


def halve(samples: Tensor) -> Tensor:
    """Return pixels (B, C, H, W) from samples (B, C, 2(H + 5), 2(W + 5)), of which sample 5 is on pixel 0."""
    height, width = (side // 2 - 5 for side in samples.shape[-2:])
    halving = _blocks_like(samples.dtype, samples.device)[1]
    return _in_blocks(_in_blocks(samples, halving, 2 * BLOCK, width).mT, halving, 2 * BLOCK, height).mT


def _in_blocks(rows: Tensor, matrix: Tensor, step: int, count: int) -> Tensor:
    """Return (..., count) from rows (..., N): a matrix (window, made) applied to overlapping windows, `step` apart.

    Several times as fast as the same convolution with one channel and few taps.
    """
    window, made = matrix.shape
    blocks = -(-count // made)
    rows = F.pad(rows, (0, (blocks - 1) * step + window - rows.shape[-1]))
    windows = rows.unfold(-1, window, step).reshape(-1, window)  # one large product, not one a row
    return (windows @ matrix).view(*rows.shape[:-1], -1)[..., :count]


@cache
def octaves(count: int) -> Tensor:
    """Return kernels (count, taps) of octave bands, lowest first; together they sum to a unit impulse.

    The lowest band holds all frequencies below the others. The two-band split is the autocorrelation of sym2 and its
    complement; the lower half is split again at every second pixel.
    """
    if count == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    taps = lowpass(SYM2)
    low = F.conv1d(taps.view(1, 1, -1), taps.view(1, 1, -1), padding=len(taps) - 1).flatten()
    below = octaves(count - 1)
    spread = torch.zeros(len(below), 2 * below.shape[1] - 1, dtype=torch.float64)
    spread[:, ::2] = below
    lower = F.conv1d(spread[:, None], low.view(1, 1, -1), padding=len(low) - 1)[:, 0]  # symmetric: no need to flip
    highest = -low
    highest[len(low) // 2] += 1
    margin = (lower.shape[1] - len(low)) // 2
    return torch.cat([lower, F.pad(highest, (margin, margin))[None]])


def weigh_octaves(images: Tensor, gains: Tensor) -> Tensor:
    """Filter images (B, C, H, W) along both axes with gains (B, count) of their octaves, lowest first."""
    kernels = like(gains @ octaves(gains.shape[1]).to(gains), images)
    batch, channels = images.shape[:2]
    margin = kernels.shape[1] // 2
    weight = kernels.repeat_interleave(channels, dim=0)[:, None]
    images = reflect(images, margin, margin).flatten(0, 1)[None]
    images = F.conv2d(images, weight[:, :, None, :], groups=batch * channels)
    images = F.conv2d(images, weight[:, :, :, None], groups=batch * channels)
    return rearrange(images, "1 (b c) h w -> b c h w", b=batch)


def reflect(images: Tensor, x: int, y: int) -> Tensor:
    """Pad images (B, C, H, W) by x columns and y rows on each side, reflected as often as the padding needs."""
    while x > 0 or y > 0:
        step_x, step_y = min(x, images.shape[-1] - 1), min(y, images.shape[-2] - 1)
        images = F.pad(images, (step_x, step_x, step_y, step_y), mode="reflect")
        x, y = x - step_x, y - step_y
    return images
