"""The Frechet distance of two sets of features (FID, where the features are Inception's).

Heusel et al., *GANs Trained by a Two Time-Scale Update Rule*: both sets are taken for Gaussian, and
|m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)) is the squared 2-Wasserstein distance of the two.
Shapes: N images, D features.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and covariance (D, D) in float64, and of how many images they are."""

    mean: Tensor
    covariance: Tensor
    num_images: int

    @cached_property
    def factor(self) -> Tensor:
        """A matrix A (D, D) with A A^T = covariance; rounding may make eigenvalues negative, they count as 0."""
        values, vectors = torch.linalg.eigh(self.covariance)
        factor: Tensor = vectors * values.clamp_min(0).sqrt()
        return factor


def fit_gaussian(features: Tensor) -> Gaussian:
    """Return the Gaussian of features (N, D): unbiased covariance, float64, two passes. ValueError where N < 2."""
    num_images, dim = features.shape
    if num_images < 2:
        raise ValueError(f"a covariance needs 2 images, not {num_images}")
    parts = torch.split(features, ROWS_AT_ONCE)
    mean = torch.stack([part.double().sum(0) for part in parts]).sum(0) / num_images
    scatter = torch.zeros(dim, dim, dtype=torch.float64, device=features.device)
    for part in parts:
        centred = part.double() - mean
        scatter.addmm_(centred.T, centred)
    return Gaussian(mean, scatter / (num_images - 1), num_images)


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Return the Frechet distance of two Gaussians, never below 0.

    With S1 = A1 A1^T and S2 = A2 A2^T, Tr (S1 S2)^(1/2) is the sum of the singular values of A1^T A2. No root of the
    product is taken: its small eigenvalues, which are wrong by the rounding error of the largest, would come out of the
    root with the root of that error (self-distances of 1e-5 and more, or imaginary ones).
    """
    shared = torch.linalg.svdvals(first.factor.T @ second.factor).sum()
    traces = first.covariance.trace() + second.covariance.trace()
    distance = (first.mean - second.mean).square().sum() + traces - 2 * shared
    return max(0.0, float(distance))
