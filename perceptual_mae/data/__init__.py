"""Data sets (one a file, one line in `DATASETS`), their transforms, and loading of batches."""

from collections.abc import Callable

from perceptual_mae.data.cifar10 import Cifar10
from perceptual_mae.data.dataset import ImageDataset
from perceptual_mae.data.digits import Digits
from perceptual_mae.data.image_folder import ImageFolder
from perceptual_mae.data.shapes import Shapes
from perceptual_mae.data.stl10 import Stl10

DATASETS: dict[str, Callable[..., ImageDataset]] = {
    "shapes": Shapes,
    "digits": Digits,
    "cifar10": Cifar10,
    "stl10": Stl10,
    "image_folder": ImageFolder,
}
"""kind -> class called with the split ("train", "val", "test") and keyword options."""
