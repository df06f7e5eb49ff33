"""Some images of a data set, in an order of one's own."""

from collections.abc import Sequence

from torch import Tensor

from perceptual_mae.data.dataset import ImageDataset
from perceptual_mae.data.labels import label_of


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
