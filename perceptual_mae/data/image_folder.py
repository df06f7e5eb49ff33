"""A folder of image files, flat or with class folders, split by subfolders or by seeded shares."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from perceptual_mae.data.dataset import MAX_UNREADABLE, MaxPixels, Seed, check_split
from perceptual_mae.data.decoding import MAX_PIXELS
from perceptual_mae.data.image_tree import ImageTree, check_root, class_names, find_folder
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


class ImageFolder:
    """Image files in a folder: split by its subfolders where there are any, else by seeded shares.

    Links are followed and class folders give labels (see `ImageTree`). "train" is the folder train or training, else
    everything but the folders of the other splits. "val" and "test" are folders with a usual name (val, valid,
    validation; test, testing), else a seeded share of the training images, which "train" then lacks. Two options may
    name the same folder (`test: val` where there are only train and val).

    Options:
        root: folder of the images [none]
        val: folder of split "val", absolute or relative to root; null looks for a usual name [ours]
        test: folder of split "test", absolute or relative to root; null looks for a usual name [ours]
        holdout: share in [0, 0.5) of the training images for each split without a folder; null is 0.05 where
            root has no split folder, else 0 [ours]
        split_fractions: shares of train, val and test, 1 in all, drawn in every class of a root without split
            folders; excludes holdout [ours]
        seed: seed of the shares of holdout and split_fractions [ours]
        max_pixels: width x height beyond which a file's header counts it as unreadable [Pillow]
        max_unreadable: share in [0, 1) of a split's images that may be unreadable; more end the run [ours]
    """

    photographs = True
    """Images of any size, of which held-out ones are resized before the crop where nothing is said."""

    def __init__(
        self,
        split: str,
        *,
        root: str,
        val: str | None = None,
        test: str | None = None,
        holdout: float | None = None,
        split_fractions: tuple[float, float, float] | None = None,
        seed: Seed = 0,
        max_pixels: MaxPixels = MAX_PIXELS,
        max_unreadable: float = MAX_UNREADABLE,
    ) -> None:
        check_split(split)
        if max_pixels < 1:
            raise UserError(f"data.max_pixels is {max_pixels}; give at least 1, usually {MAX_PIXELS}")
        if not 0 <= max_unreadable < 1:
            raise UserError(f"data.max_unreadable is {max_unreadable}; it is a share of the images, in [0, 1)")
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
        self._indices: list[int] | None = None
        if own_folder is not None:
            self._tree = ImageTree(
                own_folder, classes=class_names(source, exclude=others) or None, max_pixels=max_pixels
            )
        elif split != "train" and holdout == 0:
            raise UserError(f"no {split} folder in {folder}; name one with data.{split}, or set data.holdout=0.05")
        else:
            self._tree = ImageTree(source, exclude=others, max_pixels=max_pixels)
            without_folder = [name for name, path in held_out.items() if path is None]
            if split_fractions is None:
                shares = _shares(len(self._tree), holdout, without_folder, seed)
            else:
                labels = [self._tree.label(index) for index in range(len(self._tree))]
                shares = split_by_fractions(labels, split_fractions, seed)
            self._indices = shares[split]
            if not self._indices:
                raise UserError(f"data.split_fractions leaves no {split} image of {len(self._tree)}; change it")
        self.classes: tuple[str, ...] = self._tree.classes
        self.listing, self.stray_image = self._tree.listing, self._tree.stray_image
        self.more_images = "hold out more with data.holdout"
        if own_folder is not None:
            self.more_images = f"put more into {own_folder}, or name another folder with data.{split}"
        elif split_fractions is not None:
            self.more_images = "hold out more with data.split_fractions"

    def __len__(self) -> int:
        return len(self._tree) if self._indices is None else len(self._indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._tree[index if self._indices is None else self._indices[index]]

    def file_path(self, index: int) -> Path:
        """Return the path of an image's file."""
        return self._tree.file_path(index if self._indices is None else self._indices[index])

    def label(self, index: int) -> int:
        return self._tree.label(index if self._indices is None else self._indices[index])

    def file_name(self, index: int) -> str:
        """Return the path of an image's file, relative to the folder of its split."""
        return self._tree.file_name(index if self._indices is None else self._indices[index])


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
