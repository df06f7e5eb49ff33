"""One set of images split into training, validation and test images, every class alike."""

import math
from collections.abc import Sequence

import torch

from perceptual_mae.data.dataset import SPLITS
from perceptual_mae.errors import UserError
from perceptual_mae.seeding import stream

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

    Each class is shuffled by itself; then one image after the other, class by class, goes to the split that is furthest
    behind its share. So every class gives its shares up to rounding, and the next class makes up for the remainder.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    splits: tuple[list[int], ...] = ([], [], [])
    given = 0
    for label, indices in sorted(members.items()):
        for place in torch.randperm(len(indices), generator=stream("split", seed, label)).tolist():
            given += 1
            behind = [share * given - len(split) for share, split in zip(fractions, splits, strict=True)]
            splits[behind.index(max(behind))].append(indices[place])
    return {name: sorted(split) for name, split in zip(SPLITS, splits, strict=True)}
