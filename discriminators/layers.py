"""Layers of the pyramid discriminators: equalised convolutions, blurred downsampling, minibatch standard deviation.

Everything here can be differentiated twice (R1, path length).
"""

import math
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAK = 0.2
"""Slope of the leaky ReLU below zero in MSG-GAN and StyleGAN2."""

TAPS = (1.0, 3.0, 3.0, 1.0)
"""Weights of the blur along each axis, before they are divided by their sum."""

Group = int | Literal["batch"]
"""Largest number of images that a minibatch standard deviation is taken over; "batch" is all of them."""

Stem = Literal["plain", "space_to_depth"]
"""How a discriminator reads the full size: by layers at that size, or each 2x2 pixels as the channels of one."""


class EqualizedConv2d(nn.Module):
    """leaky_relu(convolution * c / sqrt(fan_in) + bias) * gain, with weights of unit variance (Progressive GAN 4.1).

    weight_gain: c, sqrt(2) in MSG-GAN and 1 in StyleGAN2. The factor is applied at run time, so that an optimiser that
    divides by gradient sizes moves every layer at the same relative speed. Without `equalized` it is built into the
    initial weights instead: the same function at first, but an ordinary layer to the optimiser.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        activate: bool = True,
        gain: float = 1.0,
        weight_gain: float = 1.0,
        equalized: bool = True,
    ) -> None:
        super().__init__()
        scale = weight_gain / math.sqrt(in_channels * kernel_size**2)
        weight = torch.randn(out_channels, in_channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(weight if equalized else weight * scale)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.scale = scale if equalized else 1.0
        self.stride, self.padding, self.activate, self.gain = stride, padding, activate, gain

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, out_channels, H', W') from (B, in_channels, H, W); values of any range."""
        images, weight = _scaled(images, self.weight, self.scale * self.gain)
        bias = self.bias if self.bias is None or self.gain == 1 else self.bias * self.gain
        hidden = F.conv2d(images, weight, bias, self.stride, self.padding)
        return F.leaky_relu(hidden, LEAK) if self.activate else hidden


class EqualizedLinear(nn.Module):
    """leaky_relu(linear / sqrt(fan_in) + bias) * gain: the fully connected form of `EqualizedConv2d`."""

    def __init__(self, in_features: int, out_features: int, *, activate: bool = True, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.scale, self.activate, self.gain = 1 / math.sqrt(in_features), activate, gain

    def forward(self, vectors: Tensor) -> Tensor:
        """Return (B, out_features) from (B, in_features)."""
        vectors, weight = _scaled(vectors, self.weight, self.scale * self.gain)
        hidden = F.linear(vectors, weight, self.bias * self.gain)
        return F.leaky_relu(hidden, LEAK) if self.activate else hidden


class Blur(nn.Module):
    """Each channel convolved with the outer product of [1, 3, 3, 1] / 8 with itself, which sums to 1; no parameters."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor(TAPS) / sum(TAPS)
        self.register_buffer("kernel", torch.outer(taps, taps).view(1, 1, 4, 4), persistent=False)

    def forward(self, images: Tensor, padding: int, step: int = 1) -> Tensor:
        """Blur (B, C, H, W), padded by `padding` zeros on each side, and keep every `step`-th pixel.

        Before a 3x3 convolution of stride 2 the padding is 2 (StyleGAN2); padding 1 and step 2 halve the image itself.
        """
        if images.device.type == "cuda":
            return blur_by_products(images, padding, step)
        blurred: Tensor = _SymmetricConvolution.apply(images, self.kernel, padding, step)
        return blurred


def blur_by_products(images: Tensor, padding: int, step: int) -> Tensor:
    """Return what `Blur` does, as matrix products along columns and rows, in the layout of `images` (B, C, H, W).

    On a GPU they take a tenth of the time of cuDNN's convolutions of single channels.
    """
    batch, channels, height, width = images.shape
    down, across = (_band_of(side, padding, step, images.dtype, images.device) for side in (height, width))
    if not images.is_contiguous(memory_format=torch.channels_last):
        planes: Tensor = down @ images @ across.mT
        return planes
    rows = down @ images.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    blurred: Tensor = across @ rows.view(batch, len(down), width, channels)
    return blurred.permute(0, 3, 1, 2)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _band_of(side: int, padding: int, step: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return `_band`'s matrix, a constant where this is compiled: in the graph it would be made anew on the host."""
    return _band(side, padding, step, dtype, device)


@cache
def _band(side: int, padding: int, step: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix (kept, side) that blurs `side` pixels between `padding` zeros and keeps every step-th."""
    padded = side + 2 * padding
    with torch.inference_mode(False):  # it is kept for trainings, too
        band = torch.zeros(padded - len(TAPS) + 1, padded, dtype=dtype)
        for tap, weight in enumerate(TAPS):
            band.diagonal(tap).fill_(weight / sum(TAPS))
        return band[::step, padding : padding + side].to(device)


class _SymmetricConvolution(torch.autograd.Function):
    """Every channel of (B, C, H, W) convolved with a constant kernel (1, 1, k, k) that is its own mirror image.

    Of the result every `step`-th pixel is kept: the same as a stride, whose backward pass is several times slower on
    CPUs. The gradient is such a convolution again, and so on. torch's own second derivative would also find the
    gradient of the kernel, which is not needed, channel by channel.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, kernel: Tensor, padding: int, step: int) -> Tensor:
        """Return (B, C, H', W') of images (B, C, H, W)."""
        width = images.shape[1]
        kernels = kernel.to(images.dtype).expand(width, 1, -1, -1)
        convolved = F.conv2d(images, kernels, padding=padding, groups=width)
        ctx.save_for_backward(kernel)
        ctx.padding, ctx.step, ctx.full = padding, step, convolved.shape
        is_last = images.is_contiguous(memory_format=torch.channels_last)
        ctx.layout = torch.channels_last if is_last else torch.contiguous_format
        return convolved if step == 1 else convolved[:, :, ::step, ::step]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of images (B, C, H, W) by that of the result (B, C, H', W')."""
        (kernel,) = ctx.saved_tensors
        if ctx.step == 1:
            spread = gradient.contiguous(memory_format=ctx.layout)
        else:
            empty = torch.empty(ctx.full, dtype=gradient.dtype, device=gradient.device, memory_format=ctx.layout)
            spread = empty.zero_()
            spread[:, :, :: ctx.step, :: ctx.step] = gradient
        padding = kernel.shape[-1] - 1 - ctx.padding
        return _SymmetricConvolution.apply(spread, kernel, padding, 1), None, None, None


def minibatch_stddev(images: Tensor, group: Group = 4) -> Tensor:
    """Append to (B, C, H, W) one map, the standard deviation within groups of images: (B, C + 1, H, W).

    Groups are strided, image i with i + B/g, i + 2B/g, ..., and g is the largest divisor of B up to `group`. The map is
    the standard deviation over the group, averaged over channels and pixels (Progressive GAN section 3), in float32
    under autocast too.
    """
    batch, _, height, width = images.shape
    largest = batch if group == "batch" else min(group, batch)
    size = next(size for size in range(largest, 0, -1) if batch % size == 0)
    # In bfloat16 the differences of similar images would vanish. Autocast narrows none of these operations.
    exact = images if images.dtype == torch.float64 else images.float()
    groups = exact.reshape(size, batch // size, *images.shape[1:])  # image within its group, group, C, H, W
    variance = (groups - groups.mean(dim=0)).square().mean(dim=0)  # (groups, C, H, W); several times faster than var()
    std = (variance + 1e-8).sqrt().mean(dim=(1, 2, 3))
    maps = std.to(images.dtype).repeat(size).view(batch, 1, 1, 1).expand(batch, 1, height, width)
    return torch.cat([images, maps], dim=1)


def check_group(name: str, group: Group) -> None:
    """Raise ValueError unless `group` is a positive number or "batch"."""
    if group != "batch" and (not isinstance(group, int) or group < 1):
        raise ValueError(f'minibatch_group of {name} must be 1 or more images, or "batch", not {group!r}')


def check_stem(name: str, stem: str, size: tuple[int, int]) -> None:
    """Raise ValueError for an unknown stem of the discriminator `name`, and for a size (H, W) without whole 2x2s."""
    if stem not in ("plain", "space_to_depth"):
        raise ValueError(f"unknown stem {stem!r} of {name}; choose from: plain, space_to_depth")
    if stem == "space_to_depth" and (size[0] % 2 or size[1] % 2):
        raise ValueError(f"stem space_to_depth of {name} needs even sides, not {size[0]}x{size[1]}; use stem: plain")


def _scaled(images: Tensor, weight: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Return images (B, ...) and weight (out, ...), the smaller of the two times `factor`: both layers are linear.

    The leaky ReLU lets a positive factor through. Scaling the results instead, or always the weights, costs a tenth of
    a discriminator's time at 32 pixels.
    """
    if factor == 1:
        return images, weight
    return (images * factor, weight) if images.numel() < weight.numel() else (images, weight * factor)
