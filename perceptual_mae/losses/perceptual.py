"""Distances between a loss network's features of fake and real images (Perceptual MAE eq. 3)."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor


def feature_matching(fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Feature matching: sum over layers of the mean absolute difference (Perceptual MAE eq. 3, first sum).

    fake, real: layers (B, C_j, H_j, W_j). The paper's 1/N_j is the mean over an image's features of a layer. Raises
    ValueError unless both have the same layers.
    """
    _check_layers(fake, real)
    differences = [(f.to(_full(f)) - r.to(_full(r))).abs().mean() for f, r in zip(fake, real, strict=True)]
    return torch.stack(differences).sum()


def style(
    fake: Sequence[Tensor], real: Sequence[Tensor], *, gram_reduction: Literal["mean", "sum_over_chw"] = "mean"
) -> Tensor:
    """Style: sum over layers of the mean absolute difference of Gram matrices (Perceptual MAE eq. 3, second sum).

    fake, real: layers (B, C_j, H_j, W_j).

    Options:
        gram_reduction: "mean" over the C x C entries, or "sum_over_chw", the equation read literally: C*C times as
            much [paper's code]

    Raises ValueError unless both have the same layers.
    """
    _check_layers(fake, real)
    if gram_reduction not in ("mean", "sum_over_chw"):
        raise ValueError(f"unknown gram_reduction {gram_reduction!r}; choose from: mean, sum_over_chw")
    return torch.stack([_layer_style(f, r, gram_reduction) for f, r in zip(fake, real, strict=True)]).sum()


def _layer_style(fake: Tensor, real: Tensor, reduction: str) -> Tensor:
    """Return the distance of Gram matrices, a scalar, of one layer (B, C, H, W)."""
    batch, channels, height, width = fake.shape
    with torch.autocast(fake.device.type, enabled=False):  # float32 as in `gram`
        total: Tensor = _GramDistance.apply(*(layer.flatten(2).to(_full(layer)) for layer in (fake, real)))
        return total / (batch * channels * height * width * (channels**2 if reduction == "mean" else 1))


class _GramDistance(torch.autograd.Function):
    """Sum of |F F^T - R R^T| for rows F, R (B, C, N), a scalar.

    Left to autograd, the matrices (B, C, C) pass through memory several times: with StyleGAN2's 512 channels that was a
    sixth of a step. The backward pass needs their signs S alone, and as S is symmetric one product, 2 S F, serves both
    factors.
    """

    @staticmethod
    def forward(ctx: Any, fake: Tensor, real: Tensor) -> Tensor:
        """Return the sum, a scalar, of rows (B, C, N)."""
        difference = fake @ fake.mT
        difference -= real @ real.mT  # equal rows give exact zeros, which accumulation in the product would not
        total = difference.abs().sum()
        ctx.save_for_backward(fake, real, difference.sgn_())
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients (B, C, N) of both rows by that of the sum, a scalar."""
        fake, real, sign = ctx.saved_tensors
        toward_fake, toward_real = ctx.needs_input_grad
        return (
            2 * gradient * _mix(sign, fake) if toward_fake else None,
            -2 * gradient * _mix(sign, real) if toward_real else None,
        )


def _mix(matrices: Tensor, rows: Tensor) -> Tensor:
    """Return symmetric matrices (B, C, C) times rows (B, C, N), in the memory format of the rows."""
    return (rows.mT @ matrices).mT if rows.mT.is_contiguous() else matrices @ rows


def gram(features: Tensor) -> Tensor:
    """Return the Gram matrices (B, C, C) of features (B, C, H, W), divided by C*H*W.

    Float32 with autocast off: sums over H*W overflow float16, and in bfloat16 the gradient loses its direction.
    """
    _, channels, height, width = features.shape
    with torch.autocast(features.device.type, enabled=False):
        rows = features.flatten(2).to(_full(features))  # (B, C, H*W); a view, in channels_last too
        return rows @ rows.mT / (channels * height * width)


def _full(features: Tensor) -> torch.dtype:
    """Return the dtype that features (B, C, H, W) are compared in: float32 or wider."""
    return torch.promote_types(features.dtype, torch.float32)


def _check_layers(fake: Sequence[Tensor], real: Sequence[Tensor]) -> None:
    """Raise ValueError unless fake and real are the same layers (B, C_j, H_j, W_j), at least one."""
    fake_shapes, real_shapes = ([tuple(layer.shape) for layer in layers] for layers in (fake, real))
    if not fake_shapes or fake_shapes != real_shapes:
        raise ValueError(
            f"features of fake {fake_shapes} and real {real_shapes} must be the same layers of one loss network, "
            "at least one"
        )
