"""Shards: webdataset tars of encoded images, read at random through an index."""

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from perceptual_mae.data.dataset import MAX_UNREADABLE, MaxPixels, Seed
from perceptual_mae.data.decoding import MAX_PIXELS, EncodedImage, UnreadableImageError, check_num_bytes, read_image
from perceptual_mae.data.shard_cache import LocalCopies, ShardCache
from perceptual_mae.data.shard_index import ShardIndex, index_of
from perceptual_mae.data.splits import FolderSplit
from perceptual_mae.errors import UserError

logger = logging.getLogger(__name__)

CLASSES_NAME = "classes.txt"
"""Names of the classes by number, a line each, in the folder of the shards or of all splits."""
SECONDS_BETWEEN_LINES = 15.0
THREADS = 8
"""Shards that are indexed at once."""
OPEN_FILES = 128
"""Shards that a process has open at most."""
NAMED = 5
"""So many shards are named in a message."""
SECONDS_TO_A_COPY = 300.0
"""After so many seconds a shard that was read where it is may be read from a copy."""


class Shards(FolderSplit["ShardFolder"]):
    """Webdataset tars (key.jpg, key.cls), read at random and never unpacked; splits as those of image_folder.

    A folder's `*.tar` are its shards, in the order of their names; their images have the order of their members. With
    `key.cls`, the number of a class, they are labelled; `classes.txt` names the classes, a line each. Where each image
    is in its shard is kept in an index next to it (`pmae data shard` writes shards, `pmae data check` reads all).

    Options:
        root: folder of the shards, or of folders of shards for each split [none]
        val: folder of split "val", absolute or relative to root; null looks for a usual name [ours]
        test: folder of split "test", absolute or relative to root; null looks for a usual name [ours]
        holdout: share in [0, 0.5) of the training images for each split without a folder; null is 0.05 where
            root has no split folder, else 0 [ours]
        split_fractions: shares of train, val and test, 1 in all, drawn in every class of a root without split
            folders; excludes holdout [ours]
        seed: seed of the shares of holdout and split_fractions [ours]
        max_pixels: width x height beyond which a member's header counts it as unreadable [Pillow]
        max_unreadable: share in [0, 1) of a split's images that may be unreadable; more end the run [ours]
        shard_cache: local folder, and its size, for copies of shards that are on a slow mount: {folder, gigabytes};
            null: all are read where they are [ours]
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
        shard_cache: ShardCache | None = None,
    ) -> None:
        super().__init__(
            split,
            partial(ShardFolder, max_pixels=max_pixels, cache=shard_cache),
            _class_names,
            root=root,
            val=val,
            test=test,
            holdout=holdout,
            split_fractions=split_fractions,
            seed=seed,
            max_pixels=max_pixels,
            max_unreadable=max_unreadable,
        )

    @property
    def shards(self) -> list[Path]:
        """The files that hold the images."""
        return self.images.shards

    @property
    def summary(self) -> str:
        """What there is, in words."""
        return f"{len(self):,} images of {len(self.shards):,} shards in {self.images.root}"

    def file_size(self, index: int) -> int:
        """Return the bytes of an image's member."""
        return self.images.file_size(self.place(index))

    def encoded(self, index: int) -> EncodedImage:
        """Return an image as it is stored; raises UnreadableImageError."""
        return self.images.encoded(self.place(index))


class ShardFolder:
    """The images of a folder's shards as (uint8 (3, H, W), label or -1), in the order of shards and members.

    `classes` prescribes the names of the classes. `exclude` is not asked: folders in the folder are not entered.
    Raises UserError, in one line that names shard and member, for what is wrong with a tar, a label or a key.
    """

    def __init__(
        self,
        folder: Path,
        *,
        classes: tuple[str, ...] | None = None,
        exclude: Sequence[Path] = (),
        max_pixels: int = MAX_PIXELS,
        cache: ShardCache | None = None,
    ) -> None:
        self.root, self.max_pixels = folder, max_pixels
        self.shards = shards_of(folder)
        if not self.shards:
            raise UserError(f"no shard (*.tar) in {folder}; write some with pmae data shard, or name another folder")
        indices = _indices(self.shards)
        self._first = np.cumsum([0, *map(len, indices)])
        self._offsets, self._lengths, self._labels = (
            np.concatenate([getattr(index, name) for index in indices]) for name in ("offsets", "lengths", "labels")
        )
        self._indices = indices
        self._check_labels()
        self._check_keys()
        self.classes = self._named(classes)
        self._files = _Files(self.shards, None if cache is None else LocalCopies(cache, self.shards))

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return read_image(self.encoded(index), max_pixels=self.max_pixels), self.label(index)

    def encoded(self, index: int) -> EncodedImage:
        """Return an image as it is stored; raises UnreadableImageError where its shard cannot be read any more."""
        name, length = str(self.root / self.file_name(index)), self.file_size(index)
        try:
            check_num_bytes(length, self.max_pixels)
            content = self._files.read(self._shard_of(index), int(self._offsets[index]), length)
        except (ValueError, OSError) as error:
            raise UnreadableImageError(name, getattr(error, "strerror", None) or str(error)) from error
        return EncodedImage(name, content)

    def label(self, index: int) -> int:
        """Return the class of an image without reading it, -1 when the shards are not labelled."""
        return int(self._labels[index])

    def file_name(self, index: int) -> str:
        """Return the shard and the member of an image, with "/" between them."""
        shard = self._shard_of(index)
        return f"{self.shards[shard].name}/{self._indices[shard].name(index - int(self._first[shard]))}"

    def file_size(self, index: int) -> int:
        """Return the bytes of an image's member."""
        return int(self._lengths[index])

    def _shard_of(self, index: int) -> int:
        return int(np.searchsorted(self._first, index, side="right")) - 1

    def _check_labels(self) -> None:
        labelled = self._labels >= 0
        if labelled.any() and not labelled.all():
            raise UserError(
                f"{self.root / self.file_name(int(labelled.argmin()))}: no label, unlike others; add its .cls"
            )

    def _check_keys(self) -> None:
        """Raise UserError where two images have one key: a member's name to the first dot."""
        keys = np.concatenate([_keys(index) for index in self._indices])
        order = np.argsort(keys, kind="stable")
        same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
        if len(same):
            first, second = (self.root / self.file_name(int(order[same[0] + place])) for place in (0, 1))
            raise UserError(f"{second}: has the key of {first}; rename one, for a key names one image of the data set")

    def _named(self, prescribed: tuple[str, ...] | None) -> tuple[str, ...]:
        """Return the names of the classes: prescribed ones, else those of classes.txt, else their numbers."""
        largest = int(self._labels.max())
        if largest < 0:
            return ()
        names = prescribed or _read_classes(self.root) or tuple(map(str, range(largest + 1)))
        if largest >= len(names):
            member = self.root / self.file_name(int(self._labels.argmax()))
            where = "the training shards have" if prescribed else f"{CLASSES_NAME} names"
            raise UserError(f"{member}: its label is {largest}, but {where} {len(names)} classes, from 0 on")
        return names


class _Files:
    """The open shards of a process: each process opens its own, and at most so many."""

    def __init__(self, shards: Sequence[Path], copies: LocalCopies | None) -> None:
        self._shards, self._copies = shards, copies
        self._forget()

    def read(self, shard: int, offset: int, length: int) -> bytes:
        """Return bytes of a shard, by its number; raises OSError, or ValueError where it has become too short."""
        content = os.pread(self._open(shard).number, length, offset)
        if len(content) < length:
            raise ValueError("cut off: the shard has become shorter since the run began")
        return content

    def _open(self, shard: int) -> "_File":
        if self._process != os.getpid():
            self._forget()
        with self._lock:
            file = self._files.pop(shard, None)
            if file is None or (self._copies is not None and not file.is_copy and time.monotonic() > file.until):
                file = _File(self._shards[shard], self._copies)
            self._files[shard] = file
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
        return file

    def _forget(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._files: OrderedDict[int, _File] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {"_shards": self._shards, "_copies": self._copies}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._forget()


class _File:
    """An open shard or its copy, closed when nobody reads from it any more."""

    def __init__(self, shard: Path, copies: LocalCopies | None) -> None:
        copy = copies.open(shard) if copies is not None else None
        self.is_copy, self.until = copy is not None, time.monotonic() + SECONDS_TO_A_COPY
        self._file = shard.open("rb", buffering=0) if copy is None else copy
        self.number = self._file.fileno()

    def __del__(self) -> None:
        with suppress(AttributeError):
            self._file.close()


def shards_of(folder: Path) -> list[Path]:
    """Return the shards of a folder, in the order of their names."""
    return sorted(path for path in folder.glob("*.tar") if not path.name.startswith(".") and path.is_file())


def _class_names(folder: Path, *, exclude: Sequence[Path]) -> tuple[str, ...]:
    return ShardFolder(folder).classes if shards_of(folder) else ()


def _indices(shards: Sequence[Path]) -> list[ShardIndex]:
    """Return the indices of shards, several at once; say how far it is where that takes long.

    Raises UserError with a line for each of the first shards that have something wrong.
    """
    indices, flaws, said = list[ShardIndex](), list[str](), time.monotonic()
    with ThreadPoolExecutor(THREADS) as threads:
        for number, index in enumerate(threads.map(_index_or_flaw, shards), start=1):
            if isinstance(index, str):
                flaws.append(index)
            else:
                indices.append(index)
            if time.monotonic() - said > SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                logger.warning("%s: %d of %d shards are indexed", shards[0].parent, number, len(shards))
    if flaws:
        more = [f"and {len(flaws) - NAMED} more shards"] if len(flaws) > NAMED else []
        raise UserError("\n".join([*flaws[:NAMED], *more]))
    return indices


def _index_or_flaw(shard: Path) -> ShardIndex | str:
    try:
        return index_of(shard)
    except UserError as flaw:
        return str(flaw)


def _keys(index: ShardIndex) -> NDArray[np.bytes_]:
    """Return the keys of a shard's images (N,)."""
    folders_and_bases = np.char.rpartition(index.names, b"/")
    stems = np.char.partition(folders_and_bases[:, 2], b".")[:, 0]
    return np.char.add(np.char.add(folders_and_bases[:, 0], folders_and_bases[:, 1]), stems)


def _read_classes(folder: Path) -> tuple[str, ...]:
    """Return the names in classes.txt of a folder of shards, or of the folder above it; none where there is none."""
    for place in (folder / CLASSES_NAME, folder.parent / CLASSES_NAME):
        with suppress(FileNotFoundError):
            return tuple(place.read_text().splitlines())
    return ()
