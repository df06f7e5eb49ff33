"""Some images of a data set: in an order of one's own, or chosen by a fixed shuffle."""

from collections.abc import Sequence

import torch
from torch import Tensor

from perceptual_mae.data.dataset import ImageDataset
from perceptual_mae.data.subsets import label_of
from perceptual_mae.seeding import stream


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


def shorten(dataset: ImageDataset, limit: int | None) -> ImageDataset:
    """Return the first `limit` images of a fixed shuffle of the data set, or all of them."""
    return dataset if limit is None or limit >= len(dataset) else Selection(dataset, fixed_choice(len(dataset), limit))


def fixed_choice(num_images: int, limit: int | None) -> Sequence[int]:
    """Return the first `limit` places of a fixed shuffle of a data set, ascending, or all of them."""
    if limit is None or limit >= num_images:
        return range(num_images)
    chosen: list[int] = torch.randperm(num_images, generator=stream("limit", num_images))[:limit].tolist()
    return sorted(chosen)
