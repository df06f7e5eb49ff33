"""Scores of segmentations from one confusion matrix over all pixels: mIoU, pixel and class accuracy.

Counts are added over all images before anything is divided; the mean of the batches' mIoU is another, wrong number.
"""

from typing import Any

import torch
from torch import Tensor


def confusion(predicted: Tensor, truth: Tensor, classes: int, ignored: int) -> Tensor:
    """Return counts of pixels, int64 (K, K), rows the truth and columns the prediction; both int (..., H, W).

    Pixels whose truth is `ignored` count nowhere.
    """
    counted = truth != ignored
    index = truth[counted].long() * classes + predicted[counted].long()
    return torch.bincount(index, minlength=classes**2).view(classes, classes)


def ious(matrix: Tensor) -> Tensor:
    """Return intersection over union of each class, float64 (K,); NaN for classes neither there nor predicted."""
    counts = matrix.double()
    hits = counts.diagonal()
    return hits / (counts.sum(0) + counts.sum(1) - hits)


def accuracies(matrix: Tensor) -> Tensor:
    """Return the share of each class's pixels that is right, float64 (K,); NaN for classes that are not there."""
    counts = matrix.double()
    return counts.diagonal() / counts.sum(1)


def scores_of(matrix: Tensor) -> dict[str, float]:
    """Return mIoU, aAcc (right pixels) and mAcc (mean of the classes' accuracies), in [0, 1]; NaN without pixels."""
    counts = matrix.double()
    return {
        "miou": float(ious(matrix).nanmean()),
        "aacc": float(counts.diagonal().sum() / counts.sum()),
        "macc": float(accuracies(matrix).nanmean()),
    }


def constant_floor(matrix: Tensor) -> dict[str, Any]:
    """Return class and scores of the best constant answer on the same pixels: what any segmentation has to beat."""
    pixels = matrix.sum(1)
    best = int(pixels.argmax())
    constant = torch.zeros_like(matrix)
    constant[:, best] = pixels
    return {"class": best, **scores_of(constant)}
