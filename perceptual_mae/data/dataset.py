"""The protocol of data sets, and their split into training and validation images."""

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Protocol

import torch
from pydantic import Field
from torch import Tensor

from perceptual_mae.data.decoding import MAX_PIXELS, EncodedImage, UnreadableImageError
from perceptual_mae.errors import UserError
from perceptual_mae.seeding import stream

SPLITS = ("train", "val", "test")
MAX_UNREADABLE = 0.01
"""Share of a data set's images that may be unreadable where the set says nothing else."""

# Ranges of options that several data sets have; constructors check what a file cannot say wrong.
Side = Annotated[int, Field(ge=8, le=4096)]
NumImages = Annotated[int, Field(ge=1, le=10_000_000)]
ValImages = Annotated[int, Field(ge=0, le=1_000_000_000)]
MaxPixels = Annotated[int, Field(ge=1, le=1_000_000_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class ImageDataset(Protocol):
    """Images by index; an item is (uint8 RGB image (3, H, W) of any size, values 0 to 255; class index or -1)."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the class names by class index; empty when the images carry no label."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return image and label; raises `UnreadableImageError` for a file that cannot be decoded."""


def file_name(dataset: object, index: int) -> str | None:
    """Return the file an image is read from, relative to the data set's folder, or None where it has none of its own.

    A data set whose images are files has a method `file_name(index)`.
    """
    name = getattr(dataset, "file_name", None)
    return None if name is None else name(index)


def file_path(dataset: object, index: int) -> Path | None:
    """Return the path of the file an image is read from, None where it has none; see `file_name`."""
    path = getattr(dataset, "file_path", None)
    return None if path is None else path(index)


def stored_at(dataset: object, index: int) -> Path | EncodedImage | None:
    """Return where an image's file is, or what is in it where it is part of another; None where it has none.

    A data set whose images are parts of larger files has a method `encoded(index)`.
    """
    encoded: Callable[[int], EncodedImage] | None = getattr(dataset, "encoded", None)
    return encoded(index) if encoded is not None else file_path(dataset, index)


def has_files(dataset: object) -> bool:
    """Return whether `stored_at` finds the images of a data set; no file is opened."""
    return hasattr(dataset, "encoded") or file_path(dataset, 0) is not None


def file_size(dataset: object, index: int) -> int | None:
    """Return the bytes of the file an image is read from, None where it has none; no file is opened.

    A data set whose images are parts of larger files has a method `file_size(index)`.
    """
    size: Callable[[int], int] | None = getattr(dataset, "file_size", None)
    if size is not None:
        return size(index)
    path = file_path(dataset, index)
    return None if path is None else size_of(path)


def files_sha256(dataset: ImageDataset, sizes: Mapping[str, int | None] = MappingProxyType({})) -> str | None:
    """Return the SHA-256 of the names and sizes of a data set's files, in its order, or None where it has none.

    No file is opened. sizes: by name, counted instead of those that files have. See `file_name` and `file_path`.
    """
    digest, has_files = hashlib.sha256(), False
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(dataset), _PART):
            indices = range(start, min(start + _PART, len(dataset)))
            names = [file_name(dataset, index) for index in indices]
            if not any(names):
                continue
            has_files = True
            for name, size in zip(names, pool.map(lambda index: file_size(dataset, index), indices), strict=True):
                size = sizes.get(name or "", size)
                digest.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest() if has_files else None


def size_of(path: Path) -> int | None:
    """Return the size of a file, or None where it cannot be asked: reading it will say what is wrong."""
    try:
        return path.stat().st_size
    except OSError:
        return None


_AT_ONCE, _PART = 16, 4096
"""Files whose sizes are asked for at once: over a network each answer takes a while."""


def max_unreadable(dataset: object) -> float:
    """Return the share of a data set's images that may be unreadable: its `max_unreadable`, else 1 %."""
    share: float | None = getattr(dataset, "max_unreadable", None)
    return MAX_UNREADABLE if share is None else share


def read_finite(dataset: ImageDataset, index: int) -> tuple[Tensor, int]:
    """Return an image and its label; raises UnreadableImageError where pixels of floats are not finite."""
    image, label = dataset[index]
    if image.is_floating_point() and not bool(image.isfinite().all()):
        count = int((~image.isfinite()).sum())
        raise UnreadableImageError(file_name(dataset, index) or f"image {index}", f"{count} pixels are not finite")
    return image, label


def check_split(split: str) -> str:
    """Return `split` if it is one of train, val and test; raises ValueError otherwise."""
    if split not in SPLITS:
        raise ValueError(f"unknown split '{split}'; choose from: {', '.join(SPLITS)}")
    return split


def check_limits(max_pixels: int, max_unreadable: float) -> None:
    """Raise UserError for limits of images read from files that are out of range."""
    if max_pixels < 1:
        raise UserError(f"data.max_pixels is {max_pixels}; give at least 1, usually {MAX_PIXELS}")
    if not 0 <= max_unreadable < 1:
        raise UserError(f"data.max_unreadable is {max_unreadable}; it is a share of the images, in [0, 1)")


def hold_out(num_images: int, val_images: int, split: str) -> list[int]:
    """Return the indices of "train" or "val" when `val_images` of a training set are held out for validation.

    The images held out are the last ones of a fixed shuffle, so that sets sorted by class lose some of every class.
    Raises UserError for "val" when nothing is held out: the test images never take its place silently.
    """
    if not 0 <= val_images < num_images:
        raise UserError(f"data.val_images is {val_images}; it must leave some of the {num_images} training images")
    if split == "val" and val_images == 0:
        raise UserError("split 'val' is empty; set data.val_images, the training images to hold out, e.g. 5000")
    order = torch.randperm(num_images, generator=stream("hold_out", num_images))
    cut = num_images - val_images
    return sorted((order[cut:] if split == "val" else order[:cut]).tolist())
