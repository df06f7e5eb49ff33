"""Data sets (one a file, one line in `DATASETS`), their transforms, and loading of batches."""

from collections.abc import Callable
from pathlib import Path

from perceptual_mae.data.cifar10 import Cifar10
from perceptual_mae.data.dataset import ImageDataset
from perceptual_mae.data.digits import Digits
from perceptual_mae.data.image_folder import ImageFolder
from perceptual_mae.data.shapes import Shapes
from perceptual_mae.data.shards import Shards, shards_of
from perceptual_mae.data.splits import FOLDER_NAMES
from perceptual_mae.data.stl10 import Stl10

DATASETS: dict[str, Callable[..., ImageDataset]] = {
    "shapes": Shapes,
    "digits": Digits,
    "cifar10": Cifar10,
    "stl10": Stl10,
    "image_folder": ImageFolder,
    "shards": Shards,
}
"""kind -> class called with the split ("train", "val", "test") and keyword options."""

FOLDER_KINDS = ("image_folder", "shards")
"""Kinds that are whatever images a folder, `root`, holds."""


def kind_of_folder(folder: Path) -> str:
    """Return the kind of data set of a folder: shards where it or a folder of a split in it holds some."""
    names = [name for names in FOLDER_NAMES.values() for name in names]
    places = [folder, *(path for path in folder.iterdir() if path.name.lower() in names and path.is_dir())]
    return "shards" if any(map(shards_of, places)) else "image_folder"
