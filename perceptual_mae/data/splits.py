"""The splits of a root folder: its subfolders where there are any, else seeded shares of its images."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from perceptual_mae.data.dataset import check_limits, check_split
from perceptual_mae.data.image_tree import check_root, find_folder
from perceptual_mae.data.subsets import Fractions, check_fractions, split_by_fractions
from perceptual_mae.errors import UserError
from perceptual_mae.seeding import stream

logger = logging.getLogger(__name__)

FOLDER_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
SHARE_WITHOUT_FOLDERS = 0.05


class Images(Protocol):
    """The images of one folder: a data set whose labels and names are known without reading one."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...

    def label(self, index: int) -> int: ...

    def file_name(self, index: int) -> str: ...


AnyImages = TypeVar("AnyImages", bound=Images)
AnyImages_co = TypeVar("AnyImages_co", bound=Images, covariant=True)


class OpenFolder(Protocol[AnyImages_co]):
    """Returns the images of a folder; classes: their names and order, where they are prescribed."""

    def __call__(self, folder: Path, *, classes: tuple[str, ...] | None, exclude: Sequence[Path]) -> AnyImages_co: ...


class ClassNames(Protocol):
    """Returns the names of a folder's classes, () where it has none."""

    def __call__(self, folder: Path, *, exclude: Sequence[Path]) -> tuple[str, ...]: ...


class FolderSplit(Generic[AnyImages]):
    """The images of a split of a root folder; the options are those of `ImageFolder`.

    images: those of the split's folder, of which the split has all or (indices) a share. more_images: what gives it
    more. Raises UserError for options that do not fit the folder.
    """

    def __init__(
        self,
        split: str,
        open_folder: OpenFolder[AnyImages],
        class_names: ClassNames,
        *,
        root: str,
        val: str | None,
        test: str | None,
        holdout: float | None,
        split_fractions: Fractions | None,
        seed: int,
        max_pixels: int,
        max_unreadable: float,
    ) -> None:
        check_split(split)
        check_limits(max_pixels, max_unreadable)
        self.max_pixels, self.max_unreadable = max_pixels, max_unreadable
        if holdout is not None and not 0 <= holdout < 0.5:
            raise UserError(f"data.holdout is {holdout}; it is a share of the images, at least 0 and below 0.5")
        folder = check_root(root, "set data.root to the folder that holds the images")
        train_folder = find_folder(folder, FOLDER_NAMES["train"])
        held_out = {"val": _split_folder(folder, "val", val), "test": _split_folder(folder, "test", test)}
        others = [path for path in held_out.values() if path is not None]
        if split_fractions is not None:
            _check_whole(folder, split_fractions, holdout, [train_folder, *others])
        if holdout is None:
            holdout = 0.0 if train_folder or others else SHARE_WITHOUT_FOLDERS
        source = train_folder or folder
        if split == "train" and train_folder:
            _warn_of_unread_folders(folder, [train_folder, *others])

        own_folder = held_out.get(split)
        self.indices: list[int] | None = None
        if own_folder is not None:
            names = class_names(source, exclude=others) or None
            self.images: AnyImages = open_folder(own_folder, classes=names, exclude=())
        elif split != "train" and holdout == 0:
            raise UserError(f"no {split} folder in {folder}; name one with data.{split}, or set data.holdout=0.05")
        else:
            self.images = open_folder(source, classes=None, exclude=others)
            without_folder = [name for name, path in held_out.items() if path is None]
            if split_fractions is None:
                shares = _shares(len(self.images), holdout, without_folder, seed)
            else:
                labels = [self.images.label(index) for index in range(len(self.images))]
                shares = split_by_fractions(labels, split_fractions, seed)
            self.indices = shares[split]
            if not self.indices:
                raise UserError(f"data.split_fractions leaves no {split} image of {len(self.images)}; change it")
        self.classes: tuple[str, ...] = self.images.classes
        self.more_images = "hold out more with data.holdout"
        if own_folder is not None:
            self.more_images = f"put more into {own_folder}, or name another folder with data.{split}"
        elif split_fractions is not None:
            self.more_images = "hold out more with data.split_fractions"

    def __len__(self) -> int:
        return len(self.images) if self.indices is None else len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[self.place(index)]

    def label(self, index: int) -> int:
        return self.images.label(self.place(index))

    def file_name(self, index: int) -> str:
        """Return the name of an image in the folder of its split: a path, or a shard and its member."""
        return self.images.file_name(self.place(index))

    def place(self, index: int) -> int:
        """Return the index in `images` of the split's image at `index`."""
        return index if self.indices is None else self.indices[index]


def _split_folder(root: Path, split: str, name: str | None) -> Path | None:
    if name is None:
        return find_folder(root, FOLDER_NAMES[split])
    folder = root / Path(name).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.{split}: {folder} is not a folder; give a path, absolute or relative to data.root")
    return folder


def _check_whole(root: Path, fractions: Fractions, holdout: float | None, split_folders: Sequence[Path | None]) -> None:
    check_fractions(fractions)
    if holdout is not None:
        raise UserError("data.holdout and data.split_fractions both hold out images; set one of them to null")
    if names := [path.name for path in split_folders if path is not None]:
        raise UserError(
            f"data.split_fractions: {root} is split by its folders {', '.join(names)}; set it to null, or data.root to "
            "a folder without split folders"
        )


def _shares(num_images: int, holdout: float, without_folder: Sequence[str], seed: int) -> dict[str, list[int]]:
    """Return the indices of each split: val from the front of a seeded shuffle, test from its end, train between."""
    share = max(1, round(holdout * num_images)) if holdout else 0
    first = share if "val" in without_folder else 0
    last = num_images - (share if "test" in without_folder else 0)
    if first >= last:
        raise UserError(f"{num_images} image(s) are too few to hold some out; set data.holdout=0 or add images")
    order = torch.randperm(num_images, generator=stream("hold_out", seed)).tolist()
    return {"val": sorted(order[:first]), "train": sorted(order[first:last]), "test": sorted(order[last:])}


def _warn_of_unread_folders(root: Path, read: Sequence[Path]) -> None:
    """Log which folders next to "train" are not read: the root may have a class called train, and no splits."""
    names = {path.name for path in read}
    left = [entry.name for entry in sorted(root.iterdir()) if entry.is_dir() and entry.name not in names]
    left = [name for name in left if not name.startswith(".")]
    if left:
        logger.warning("%s has a folder for training images; not read: %s", root, ", ".join(left[:5]))
