"""STL-10 (Coates et al. 2011): 100,000 unlabelled, 5,000 training and 8,000 test images of 96x96."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from perceptual_mae.data.dataset import ValImages, check_split, file_name, file_path, hold_out
from perceptual_mae.data.image_tree import ImageTree, check_root, find_folder
from perceptual_mae.errors import UserError

BINARY_FOLDER = "stl10_binary"
CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
IMAGE_SHAPE = (3, 96, 96)
IMAGE_BYTES = 3 * 96 * 96
HINT = f"put {BINARY_FOLDER}/ or folders unlabeled/, train/<class>/, test/<class>/ there, or set data.download=true"


class Stl10:
    """STL-10: 96x96 images in ten classes, most of them unlabelled, from torchvision's layout or a folder tree.

    The tree is {unlabeled,train/<class>,test/<class>}. "test" is always labelled. Images are read on access (2.8 GB in
    all).

    Options:
        root: folder that holds the data set in either layout [none]
        download: fetch torchvision's archive into root if it is missing [ours]
        labelled: train on the 5,000 labelled images instead of the 100,000 unlabelled [ours]
        val_images: training images held out as split "val", the last of a fixed shuffle [ours]
    """

    def __init__(
        self, split: str, *, root: str, download: bool = False, labelled: bool = False, val_images: ValImages = 0
    ) -> None:
        check_split(split)
        part = "test" if split == "test" else "train" if labelled else "unlabeled"
        self._source: ImageTree | _Binary = _open(root, part, download)
        self.classes: tuple[str, ...] = () if part == "unlabeled" else CLASSES
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


class _Binary:
    """One part of torchvision's layout, uint8 (3, 96, 96): a file of bytes by image, channel, column and row."""

    def __init__(self, folder: Path, part: str) -> None:
        self._file = folder / BINARY_FOLDER / f"{part}_X.bin"
        label_file = folder / BINARY_FOLDER / f"{part}_y.bin"
        try:
            num_bytes = self._file.stat().st_size
            labels = None if part == "unlabeled" else np.fromfile(label_file, dtype=np.uint8)
        except OSError as error:
            raise UserError(f"data.root: {error.filename} is missing; {HINT}") from error
        self._num_images = num_bytes // IMAGE_BYTES
        self._labels = None if labels is None else (labels.astype(int) - 1).tolist()  # the file counts from 1
        counted = self._num_images if self._labels is None else len(self._labels)
        if num_bytes % IMAGE_BYTES or counted != self._num_images or not counted:
            raise UserError(f"data.root: {self._file} is damaged ({num_bytes} bytes); {HINT}")

    def __len__(self) -> int:
        return self._num_images

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        columns = np.fromfile(self._file, dtype=np.uint8, count=IMAGE_BYTES, offset=index * IMAGE_BYTES)
        image = torch.from_numpy(columns).view(IMAGE_SHAPE).transpose(1, 2).contiguous()
        return image, self.label(index)

    def label(self, index: int) -> int:
        return -1 if self._labels is None else int(self._labels[index])


def _open(root: str, part: str, download: bool) -> "ImageTree | _Binary":
    folder = Path(root).expanduser()
    if folder.name == BINARY_FOLDER and folder.is_dir():
        folder = folder.parent
    if download and not (folder / BINARY_FOLDER / f"{part}_X.bin").is_file():
        try:
            datasets.STL10(str(folder), split=part, download=True)
        except (RuntimeError, OSError, EOFError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"data.root: STL-10 could not be downloaded to {folder} ({reason}); {HINT}") from error
    if (folder / BINARY_FOLDER).is_dir():
        return _Binary(folder, part)
    check_root(root, HINT)
    names = ["unlabeled", "unlabelled"] if part == "unlabeled" else [part]
    below = find_folder(folder, names) or find_folder(find_folder(folder, ["stl10", "stl-10"]) or folder, names)
    if below is None:
        raise UserError(f"data.root: no {part} part of STL-10 in {folder}; {HINT}")
    tree = ImageTree(below, labelled=part != "unlabeled")
    if part != "unlabeled" and tree.classes != CLASSES:
        raise UserError(f"data.root: {below} lacks the ten class folders of STL-10; use data.kind=image_folder")
    return tree
