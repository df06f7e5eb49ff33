"""Scores of features that need no labels, read off their spectrum. Shapes: N images, D features; all in float64.

RankMe (Garrido et al. 2023) is the number of directions that features use, alpha-ReQ (Agrawal et al. 2022) how fast
their variance falls from one direction to the next.
"""

import math

import torch
from torch import Tensor

EPSILON = 1e-7
"""Added to each share of the singular values, as in RankMe's paper."""

ROWS_AT_ONCE = 1 << 14
FIRST_RANK, LAST_RANK = 11, 100
NOISE = 1e-12
"""Eigenvalues below this share of the features' sum of squares are rounding errors of float32."""


def rankme(features: Tensor) -> float:
    """Return RankMe of features (N, D), between 1 and min(N, D) up to its epsilon of 1e-7.

    It is exp of the entropy of the singular values' shares in their sum. Features are not centred: a mean that
    outweighs everything else is one direction. Raises ValueError for fewer than two images, or non-finite values.
    """
    singular_values = _squared_singular_values(_checked(features), 0.0).sqrt()
    shares = singular_values / singular_values.sum().clamp_min(torch.finfo(torch.float64).tiny) + EPSILON
    return float((shares * shares.log()).sum().neg().exp())


def alpha_req(features: Tensor) -> float:
    """Return alpha-ReQ of features (N, D): eigenvalue k of their covariance falls as k to the power of -alpha.

    A line is fitted by least squares to the logarithm of the eigenvalues over that of their ranks (see `fitted_ranks`).
    NaN where features vary in fewer than three directions. Raises ValueError for fewer than two images, or non-finite
    values.
    """
    features = _checked(features)
    eigenvalues = _squared_singular_values(features, features.mean(0, dtype=torch.float64))
    total = torch.linalg.vector_norm(features, dtype=torch.float64).square()
    eigenvalues = eigenvalues[eigenvalues > NOISE * total]
    first, last = fitted_ranks(len(eigenvalues))
    if first == last:
        return math.nan
    ranks = torch.arange(first, last + 1, dtype=torch.float64).log()
    heights = eigenvalues[first - 1 : last].log()
    ranks -= ranks.mean()
    return -float((ranks * heights).sum() / ranks.square().sum())


def fitted_ranks(count: int) -> tuple[int, int]:
    """Return the first and the last rank, from 1, that alpha-ReQ is fitted to, of `count` eigenvalues above noise.

    They are 11 to 100. Of fewer than 200 eigenvalues the last half, which a finite sample distorts, is left out, and
    the first rank is at most an eighth of the last.
    """
    last = max(1, min(LAST_RANK, (count + 1) // 2))
    return min(FIRST_RANK, -(-last // 8)), last


def spectrum_scores(features: Tensor) -> dict[str, float | None]:
    """Return both scores of features (N, D), rounded; alpha-ReQ is None where it is not defined."""
    alpha = alpha_req(features)
    return {"rankme": round(rankme(features), 4), "alpha_req": None if math.isnan(alpha) else round(alpha, 4)}


def _checked(features: Tensor) -> Tensor:
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f"features of shape {tuple(features.shape)} have no spectrum; give (N, D) of two images or more"
        )
    if not bool(features.isfinite().all()):
        raise ValueError("features have values that are not finite; score weights from before training went wrong")
    return features.detach().cpu()


def _squared_singular_values(features: Tensor, center: Tensor | float) -> Tensor:
    """Return the min(N, D) squared singular values of features - center in float64, largest first."""
    if len(features) < features.shape[1]:
        rows = features.double() - center
        product = rows @ rows.T
    else:
        product = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64)
        for part in torch.split(features, ROWS_AT_ONCE):
            rows = part.double() - center
            product += rows.T @ rows
    eigenvalues: Tensor = torch.linalg.eigvalsh(product)
    return eigenvalues.clamp_min(0).flip(0)
