"""Handwritten digits from scikit-learn: 1,797 grey images of 8x8, enlarged, as RGB; nothing is downloaded."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from perceptual_mae.data.dataset import check_split
from perceptual_mae.errors import UserError
from perceptual_mae.seeding import stream

SHARES = {"train": (0.0, 0.7), "val": (0.7, 0.8), "test": (0.8, 1.0)}


class Digits:
    """Handwritten digits 0 to 9 of scikit-learn, bright on dark; 70% of each class train, 10% val, 20% test.

    Options:
        size: side in pixels, 8 or more, to which the 8x8 images are enlarged (bicubic) [ours]
    """

    classes: tuple[str, ...] = tuple("0123456789")

    def __init__(self, split: str, *, size: Annotated[int, Field(ge=8, le=256)] = 32) -> None:
        check_split(split)
        if size < 8:
            raise UserError(f"data.size is {size}; the digits are at least 8 pixels wide")
        from sklearn.datasets import load_digits  # here: the import takes a second, and no other data set needs it

        source = load_digits()
        labels = torch.from_numpy(source.target).long()
        indices = _split_indices(labels, split)
        images = torch.from_numpy(source.images).float()[indices, None] / 16.0  # the source counts 0..16
        enlarged = F.interpolate(images, size=(size, size), mode="bicubic", align_corners=False)
        self._images = enlarged.clamp(0, 1).mul(255).round().to(torch.uint8)
        self._labels = labels[indices].tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._images[index].repeat(3, 1, 1), self._labels[index]

    def label(self, index: int) -> int:
        return int(self._labels[index])


def _split_indices(labels: Tensor, split: str) -> Tensor:
    """Return the indices (N,) of a split, ascending, by the class labels (1797,)."""
    indices = []
    for label in range(10):
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=stream("digits", label))]
        first, last = (round(share * len(members)) for share in SHARES[split])
        indices.append(members[first:last])
    return torch.cat(indices).sort().values
