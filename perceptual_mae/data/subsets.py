"""Labels of a data set without its images, and the same few images of every class."""

from collections.abc import Callable

import torch

from perceptual_mae.data.dataset import ImageDataset
from perceptual_mae.data.decoding import UnreadableImageError
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


def balanced_share(dataset: ImageDataset, fraction: float, seed: int) -> list[int]:
    """Return the indices of a share of the data set, the same number in every class and at least one.

    A function of the seed and each class's images: a smaller share is part of a larger one. A class that has fewer
    gives all it has.
    """
    by_class: dict[int, list[int]] = {label: [] for label in range(len(dataset.classes))}
    for index in range(len(dataset)):
        by_class.setdefault(label_of(dataset, index), []).append(index)
    by_class.pop(-1, None)
    each = max(1, round(fraction * len(dataset) / len(by_class)))
    chosen = []
    for label, members in by_class.items():
        order = torch.randperm(len(members), generator=stream("fraction", seed, label))
        chosen += [members[place] for place in order[:each].tolist()]
    return sorted(chosen)
