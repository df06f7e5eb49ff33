"""Subsets of data sets: class-balanced, random, or split by fractions; labels without decoding images."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from perceptual_mae.data.dataset import SPLITS, ImageDataset, file_path
from perceptual_mae.data.decoding import UnreadableImageError
from perceptual_mae.errors import UserError
from perceptual_mae.seeding import stream


def label_of(dataset: ImageDataset, index: int) -> int:
    """Return the class index of an image, -1 where there is none; reads the image where the set has no `label`."""
    known: Callable[[int], int] | None = getattr(dataset, "label", None)
    if known is not None:
        return known(index)
    try:
        return dataset[index][1]
    except UnreadableImageError:
        return -1


def class_balanced_subset(dataset: ImageDataset, fraction: float, seed: int) -> list[int]:
    """Return the indices of a share of the data set, the same number in every class and at least one.

    A function of the seed and each class's images: a smaller share is part of a larger one. A class that has fewer
    gives all it has.
    """
    by_class: dict[int, list[int]] = {label: [] for label in range(len(dataset.classes))}
    for index in range(len(dataset)):
        by_class.setdefault(label_of(dataset, index), []).append(index)
    by_class.pop(-1, None)
    each = max(1, round(fraction * len(dataset) / len(by_class)))
    indices = []
    for label, members in by_class.items():
        order = torch.randperm(len(members), generator=stream("fraction", seed, label))
        indices += [members[position] for position in order[:each].tolist()]
    return sorted(indices)


class Selection:
    """The images of `dataset` at `indices`, in that order."""

    def __init__(self, dataset: ImageDataset, indices: Sequence[int]) -> None:
        self._dataset, self._indices = dataset, indices

    @property
    def classes(self) -> tuple[str, ...]:
        return self._dataset.classes

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._dataset[self._indices[index]]

    def label(self, index: int) -> int:
        return label_of(self._dataset, self._indices[index])

    def file_path(self, index: int) -> Path | None:
        return file_path(self._dataset, self._indices[index])

    @property
    def max_unreadable(self) -> float | None:
        return getattr(self._dataset, "max_unreadable", None)


def limited(dataset: ImageDataset, limit: int | None) -> ImageDataset:
    """Return the first `limit` images of a fixed shuffle of the data set, or all of them."""
    return dataset if limit is None or limit >= len(dataset) else Selection(dataset, random_subset(len(dataset), limit))


def random_subset(num_images: int, limit: int | None) -> Sequence[int]:
    """Return `limit` indices of a data set, the first of a fixed shuffle, ascending; or all of them."""
    if limit is None or limit >= num_images:
        return range(num_images)
    indices: list[int] = torch.randperm(num_images, generator=stream("limit", num_images))[:limit].tolist()
    return sorted(indices)


Fractions = tuple[float, float, float]
"""Shares of train, val and test, 1 in all."""


def check_fractions(fractions: Fractions) -> None:
    """Raise UserError unless the fractions are shares that use all images and leave some to train on."""
    if min(fractions) < 0 or fractions[0] == 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        listed = ", ".join(f"{share:g}" for share in fractions)
        raise UserError(
            f"data.split_fractions is [{listed}]; give shares of train, val and test that add up to 1, train above 0"
        )


def split_by_fractions(labels: Sequence[int], fractions: Fractions, seed: int) -> dict[str, list[int]]:
    """Return the indices of each split, ascending: disjoint, together all, a function of labels, fractions and seed.

    Each class is shuffled by itself; then one image after the other, class by class, goes to the split that is furthest
    below its share. So every class has its shares up to rounding, and the next class evens out the remainder.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    splits: tuple[list[int], ...] = ([], [], [])
    assigned = 0
    for label, indices in sorted(members.items()):
        for position in torch.randperm(len(indices), generator=stream("split", seed, label)).tolist():
            assigned += 1
            missing = [share * assigned - len(split) for share, split in zip(fractions, splits, strict=True)]
            splits[missing.index(max(missing))].append(indices[position])
    return {name: sorted(split) for name, split in zip(SPLITS, splits, strict=True)}
