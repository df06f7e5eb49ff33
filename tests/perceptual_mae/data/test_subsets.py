"""The same few images of every class."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from perceptual_mae.data.cifar10 import Cifar10
from perceptual_mae.data.digits import Digits
from perceptual_mae.data.image_folder import ImageFolder
from perceptual_mae.data.subsets import Selection, class_balanced_subset, label_of


class Listed:
    """Labels alone; no image may be read."""

    def __init__(self, labels: list[int]) -> None:
        self.labels = labels
        self.classes = tuple(str(label) for label in sorted(set(labels)))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raise AssertionError("an image was read")

    def label(self, index: int) -> int:
        return self.labels[index]


class Unlisted(Listed):
    """A data set of one's own that has no `label`."""

    label = None  # type: ignore[assignment]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(3, 1, 1, dtype=torch.uint8), self.labels[index]


@pytest.mark.parametrize(("fraction", "each"), [(0.01, 2), (0.1, 20), (0.0001, 1), (1.0, 200)])
def test_every_class_gives_as_many(fraction: float, each: int) -> None:
    dataset = Listed([index % 3 for index in range(600)])
    chosen = class_balanced_subset(dataset, fraction, 0)
    assert Counter(dataset.labels[index] for index in chosen) == {0: each, 1: each, 2: each}
    assert chosen == sorted(set(chosen))


def test_rare_classes_give_all_they_have() -> None:
    dataset = Listed([0] * 900 + [1] * 5)
    assert Counter(dataset.labels[index] for index in class_balanced_subset(dataset, 0.1, 0)) == {0: 45, 1: 5}


def test_a_seed_decides_and_smaller_shares_are_part_of_larger_ones() -> None:
    dataset = Listed([index % 5 for index in range(1000)])
    assert class_balanced_subset(dataset, 0.1, 3) == class_balanced_subset(dataset, 0.1, 3)
    assert class_balanced_subset(dataset, 0.1, 3) != class_balanced_subset(dataset, 0.1, 4)
    assert set(class_balanced_subset(dataset, 0.05, 3)) < set(class_balanced_subset(dataset, 0.1, 3))


def test_sets_without_labels_at_hand_are_read() -> None:
    labels = [index % 2 for index in range(100)]
    assert class_balanced_subset(Unlisted(labels), 0.2, 1) == class_balanced_subset(Listed(labels), 0.2, 1)


def test_labels_are_those_of_the_images(tmp_path: Path) -> None:
    for number in range(24):
        folder = tmp_path / "photos" / f"class_{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    for dataset in (Digits("train"), ImageFolder("train", root=str(tmp_path / "photos"), holdout=0.3)):
        some = Selection(dataset, [5, 3, 1])
        assert [label_of(some, index) for index in range(3)] == [dataset[index][1] for index in (5, 3, 1)]


@pytest.mark.data
def test_one_percent_of_cifar10_is_fifty_of_each_class(cifar10: Path) -> None:
    dataset = Cifar10("train", root=str(cifar10))
    chosen = class_balanced_subset(dataset, 0.01, 0)
    assert Counter(dataset[index][1] for index in chosen) == dict.fromkeys(range(10), 50)
