"""The kernel distance of two sets of features (KID, where the features are Inception's).

Binkowski et al., *Demystifying MMD GANs*: the unbiased estimate of the squared maximum mean discrepancy under the
kernel (x.y / D + 1)^3, averaged over subsets. Unbiased, it may be negative, and it needs no covariance: it is the score
for few images. Shapes: N images, D features, m images a subset.
"""

import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from perceptual_mae.seeding import stream

SUBSETS = 100
SUBSET_SIZE = 1000


@dataclass(frozen=True)
class KernelDistance:
    """Mean and std (of the population; None for one subset) over `subsets` subsets of `subset_size` images."""

    mean: float
    std: float | None
    subsets: int
    subset_size: int


def kernel_distance(
    first: Tensor, second: Tensor, *, seed: int = 0, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE
) -> KernelDistance:
    """Return the kernel distance of features (N1, D) and (N2, D), computed in float64 where the features are.

    Subsets are drawn without replacement from streams of (seed, subset). Where neither set has more images than a
    subset, one subset is all there is. ValueError where a set has fewer than 2 images.
    """
    size = min(len(first), len(second), subset_size)
    if size < 2:
        raise ValueError(f"a kernel distance needs 2 images on both sides, not {len(first)} and {len(second)}")
    if max(len(first), len(second)) == size:
        subsets = 1
    distances = []
    for subset in range(subsets):
        draws = stream("kernel_distance", seed, subset)
        chosen = [torch.randperm(len(features), generator=draws)[:size] for features in (first, second)]
        x, y = (part[rows.to(part.device)].double() for part, rows in zip((first, second), chosen, strict=True))
        distances.append(squared_discrepancy(x, y))
    std = statistics.pstdev(distances) if subsets > 1 else None
    return KernelDistance(statistics.fmean(distances), std, subsets, size)


def squared_discrepancy(x: Tensor, y: Tensor) -> float:
    """Return the unbiased squared discrepancy of x (m, D) and y (m, D): pairs of an image with itself are left out."""
    size = len(x)
    within = [(kernel.sum() - kernel.trace()) / (size * (size - 1)) for kernel in (_kernel(x, x), _kernel(y, y))]
    return float(within[0] + within[1] - 2 * _kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3
