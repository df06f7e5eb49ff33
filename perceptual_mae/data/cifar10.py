"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32x32 in ten classes."""

from pathlib import Path

import torch
from torch import Tensor
from torchvision import datasets

from perceptual_mae.data.dataset import ValImages, check_split, file_name, file_path, hold_out
from perceptual_mae.data.image_tree import ImageTree, check_root, find_folder
from perceptual_mae.errors import UserError

BATCHES_FOLDER = "cifar-10-batches-py"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HINT = f"put {BATCHES_FOLDER}/ or class folders train/<class>/ and test/<class>/ there, or set data.download=true"


class Cifar10:
    """CIFAR-10: 32x32 images in ten classes, from torchvision's layout or a tree {train,test}/<class>/*.png.

    torchvision's layout is held in memory (150 MB); files of a tree are read on access.

    Options:
        root: folder that holds the data set in either layout [none]
        download: fetch torchvision's archive into root if it is missing [ours]
        val_images: training images held out as split "val", the last of a fixed shuffle [ours]
    """

    classes: tuple[str, ...] = CLASSES

    def __init__(self, split: str, *, root: str, download: bool = False, val_images: ValImages = 0) -> None:
        check_split(split)
        self._source: ImageTree | _Batches = _open(root, "test" if split == "test" else "train", download)
        num_images = len(self._source)
        self._indices = list(range(num_images)) if split == "test" else hold_out(num_images, val_images, split)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._source[self._indices[index]]

    def label(self, index: int) -> int:
        return self._source.label(self._indices[index])

    def file_name(self, index: int) -> str | None:
        """Return the path of an image's file below its split's folder; None in torchvision's layout."""
        return file_name(self._source, self._indices[index])

    def file_path(self, index: int) -> Path | None:
        """Return the path of an image's file; None in torchvision's layout."""
        return file_path(self._source, self._indices[index])


class _Batches:
    """The images of torchvision's layout in memory, uint8 (3, 32, 32)."""

    def __init__(self, folder: Path, part: str, download: bool) -> None:
        try:
            source = datasets.CIFAR10(str(folder), train=part == "train", download=download)
        except (RuntimeError, OSError, EOFError) as error:
            what = "could not be downloaded" if download else "are incomplete or damaged"
            message = f"data.root: the CIFAR-10 files of {folder} {what} ({_first_line(error)}); {HINT}"
            raise UserError(message) from error
        self._images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
        self._labels: list[int] = list(source.targets)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._images[index], self._labels[index]

    def label(self, index: int) -> int:
        return self._labels[index]


def _open(root: str, part: str, download: bool) -> "ImageTree | _Batches":
    folder = Path(root).expanduser()
    if folder.name == BATCHES_FOLDER and folder.is_dir():
        folder = folder.parent
    if download or (folder / BATCHES_FOLDER).is_dir():
        return _Batches(folder, part, download)
    check_root(root, HINT)
    below = find_folder(folder, [part]) or find_folder(find_folder(folder, ["cifar10", "cifar-10"]) or folder, [part])
    if below is None:
        raise UserError(f"data.root: no CIFAR-10 in {folder}; {HINT}")
    tree = ImageTree(below)
    if tree.classes != CLASSES:
        raise UserError(f"data.root: {below} lacks the ten class folders of CIFAR-10; use data.kind=image_folder")
    return tree


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
