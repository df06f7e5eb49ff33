"""One set of images split into training, validation and test images, every class alike."""

import math
from collections.abc import Sequence

import torch

from perceptual_mae.data.dataset import SPLITS
from perceptual_mae.errors import UserError
from perceptual_mae.randomness import stream

Fractions = tuple[float, float, float]
"""Shares of train, val and test, 1 in all."""


def check_fractions(fractions: Fractions) -> None:
    """Raise UserError unless the fractions are shares that use all images and leave some to train on."""
    if min(fractions) < 0 or fractions[0] == 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        shown = ", ".join(f"{share:g}" for share in fractions)
        raise UserError(
            f"data.split_fractions is [{shown}]; give shares of train, val and test that add up to 1, train above 0"
        )


def split_by_fractions(labels: Sequence[int], fractions: Fractions, seed: int) -> dict[str, list[int]]:
    """Return the indices of each split, ascending: disjoint, together all, a function of labels, fractions and seed.

    Each class is shuffled by itself, then test and validation images are taken from the row of all classes at even
    distances: every class gives its share up to rounding, and what rounding leaves over is made up by the next class.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    row: list[int] = []
    for label, indices in sorted(members.items()):
        order = torch.randperm(len(indices), generator=stream("split", seed, label))
        row += [indices[place] for place in order.tolist()]
    test, rest = _take(row, fractions[2])
    val, train = _take(rest, fractions[1] / (fractions[0] + fractions[1]))
    return {name: sorted(found) for name, found in zip(SPLITS, (train, val, test), strict=True)}


def _take(row: Sequence[int], share: float) -> tuple[list[int], list[int]]:
    """Take a share of a row at even distances; return what was taken and what is left."""
    taken, left = list[int](), list[int]()
    for place, index in enumerate(row):
        wanted = math.floor((place + 1) * share + 0.5) - math.floor(place * share + 0.5)
        (taken if wanted else left).append(index)
    return taken, left
