"""Decoded images in one file, so that training decodes each image once and not once an epoch.

What is kept is what decoding gives, every pixel at its own size: crops are drawn from the same images as without a
cache. To keep images scaled down would save space, and random crops would then be of fewer pixels, enlarged.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from perceptual_mae.data.dataset import ImageDataset, file_name, file_path, file_size, has_files, stored_at
from perceptual_mae.data.decoding import MAX_PIXELS, UnreadableImageError, read_header, reads_heif
from perceptual_mae.data.file_locks import is_held, open_held, turn_in
from perceptual_mae.data.workers import Reader, Samples, in_batches, read_once
from perceptual_mae.errors import UserError
from perceptual_mae.progress import OnProgress, no_progress

VERSION = 1
"""Of the file's format."""
PIXELS, INDEX = "pixels", "index.npz"
GIGABYTE = 10**9
AT_ONCE, THREADS = 16, 16


class PixelCache(BaseModel):
    """Where decoded images are kept, and how many bytes of them: `{folder: /scratch/pixels, gigabytes: 50}`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    folder: str = Field(min_length=1, description="folder on a local disk; made where there is none [none]")
    gigabytes: float = Field(gt=0, le=1e9, description="size of all images in it, in 10^9 bytes [none]")


class CachedImages:
    """A data set whose images are read from a file of decoded pixels once `fill` has made it.

    The file belongs to the names, sizes and times of the images' files, and to the versions of what decodes them; it is
    there whole or not at all. Images that cannot be read are not in it, and are tried whenever they are read. All else
    is the data set's.
    """

    def __init__(self, dataset: ImageDataset, cache: PixelCache) -> None:
        if not has_files(dataset):
            raise UserError("data.cache: the images of this data set are in no files of their own; set data.cache=null")
        self._dataset = dataset
        self._folder, self._num_bytes = Path(cache.folder).expanduser(), int(cache.gigabytes * GIGABYTE)
        self._file: _PixelFile | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "_dataset":  # while it is copied to another process
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self._file.image(index) if self._file is not None else None
        if image is None:
            return self._dataset[index]
        label: Callable[[int], int] = self._dataset.label  # type: ignore[attr-defined]
        return image, label(index)

    def open(self, path: Path) -> None:
        """Read images from a file that `fill` has made from now on."""
        self._file = _PixelFile(path)

    def fill(self, workers: int, on_progress: OnProgress = no_progress) -> Path:
        """Decode all images into the file, unless it is there, and return its folder; writers take turns.

        Raises UserError where the images are more than the cache may hold, OSError where the file cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / self._key()
        with turn_in(self._folder):
            if not path.exists():
                self._write(path, workers, on_progress)
            self.open(path)
        return path

    def _write(self, path: Path, workers: int, on_progress: OnProgress) -> None:
        for unfinished in self._folder.glob(".*.partial"):  # of a writer that is gone: this is our turn
            shutil.rmtree(unfinished, ignore_errors=True)
        with ThreadPoolExecutor(THREADS) as threads:
            sizes = np.array(list(threads.map(self._size, range(len(self)))), dtype=np.int64)
        lengths = 3 * sizes.prod(axis=1)
        self._make_space(int(lengths.sum()))
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".partial", dir=self._folder) as temporary:
            made = Path(temporary) / path.name
            made.mkdir()
            with (made / PIXELS).open("wb") as file:
                if lengths.any():  # on the disk, not only in name: a full one is noticed here
                    os.posix_fallocate(file.fileno(), 0, int(lengths.sum()))
            offsets = np.cumsum(lengths) - lengths
            is_kept = np.zeros(len(self), dtype=np.bool_)
            writer, done = _Writer(self._dataset, made / PIXELS, sizes, offsets), 0
            task = "images, decoded for data.cache"
            for batch in read_once(writer, in_batches(range(len(self)), AT_ONCE), workers):
                is_kept[done : done + len(batch)] = batch
                done += len(batch)
                on_progress(task, done, len(self))
            with (made / INDEX).open("wb") as file:
                np.savez(file, sizes=sizes, offsets=offsets, is_kept=is_kept)
            for name in (PIXELS, INDEX):
                with (made / name).open("rb") as file:
                    os.fsync(file.fileno())
            made.rename(path)

    def _make_space(self, num_bytes: int) -> None:
        """Remove what other data sets have left in the folder and no process reads, the oldest first, as needed."""
        others = [path for path in self._folder.iterdir() if (path / PIXELS).is_file()]
        sizes = {path: (path / PIXELS).stat() for path in others}
        taken = sum(status.st_size for status in sizes.values())
        for path in sorted(others, key=lambda path: sizes[path].st_mtime):
            if taken + num_bytes > self._num_bytes and not is_held(path / PIXELS):
                shutil.rmtree(path)
                taken -= sizes[path].st_size
        if taken + num_bytes > self._num_bytes:
            used = f", of which others have {taken / GIGABYTE:.3g} in use" if taken else ""
            raise UserError(
                f"data.cache: {len(self):,} decoded images take {num_bytes / GIGABYTE:.3g} GB, more than "
                f"data.cache.gigabytes, {self._num_bytes / GIGABYTE:g}{used}; raise it, or set data.cache=null"
            )

    def _size(self, index: int) -> tuple[int, int]:
        """Return height and width of an image, 0 where it cannot be read."""
        try:
            source = stored_at(self._dataset, index)
            return (0, 0) if source is None else read_header(source, max_pixels=self._max_pixels).upright_size
        except UnreadableImageError:
            return 0, 0

    def _key(self) -> str:
        """Return a hash of all that decides the pixels: the files, what decodes them, and their largest size."""
        versions = [VERSION, reads_heif(), *map(version, ("pillow", "torch", "torchvision"))]
        digest = hashlib.sha256(json.dumps([*versions, self._max_pixels, self._times()]).encode())
        with ThreadPoolExecutor(THREADS) as threads:
            for entry in threads.map(self._entry, range(len(self))):
                digest.update(entry)
        return digest.hexdigest()[:32]

    def _times(self) -> list[list[str | int]]:
        """Return the names and times of the files that hold several images."""
        shards: list[Path] = getattr(self._dataset, "shards", [])
        return [[os.path.abspath(shard), shard.stat().st_mtime_ns] for shard in shards]

    def _entry(self, index: int) -> bytes:
        path = file_path(self._dataset, index)
        try:
            time = None if path is None else (os.path.abspath(path), path.stat().st_mtime_ns)
        except OSError:
            time = None
        return repr((file_name(self._dataset, index), file_size(self._dataset, index), time)).encode()

    @property
    def _max_pixels(self) -> int:
        return getattr(self._dataset, "max_pixels", MAX_PIXELS)


class _Writer(Reader):
    """Decodes images into the file; runs in the workers, and returns which images are kept."""

    def __init__(self, dataset: ImageDataset, path: Path, sizes: NDArray[np.int64], offsets: NDArray[np.int64]) -> None:
        super().__init__()
        self.dataset, self._path, self._sizes, self._offsets = dataset, path, sizes, offsets

    def __getitem__(self, samples: Samples) -> list[bool]:
        with self._path.open("r+b", buffering=0) as file:
            return [self._keep(file, index) for _, index in samples]

    def _keep(self, file: IO[bytes], index: int) -> bool:
        self.notes.note(index)
        try:
            image, _ = self.dataset[index]
        except UnreadableImageError:
            return False
        if tuple(image.shape[1:]) != tuple(self._sizes[index]) or image.dtype != torch.uint8:
            return False
        if not image.is_contiguous():  # images in other layouts are scaled to other numbers
            return False
        os.pwrite(file.fileno(), image.numpy().tobytes(), int(self._offsets[index]))
        return True


class _PixelFile:
    """The file of decoded images, which each process opens for itself."""

    def __init__(self, path: Path) -> None:
        self._path = path / PIXELS
        self._open()  # nobody removes a file that is held
        with np.load(path / INDEX, allow_pickle=False) as arrays:
            self._sizes, self._offsets, self._is_kept = (arrays[name] for name in ("sizes", "offsets", "is_kept"))

    def image(self, index: int) -> Tensor | None:
        """Return an image, uint8 (3, H, W), or None where it is not kept."""
        if not self._is_kept[index]:
            return None
        height, width = map(int, self._sizes[index])
        if self._process != os.getpid():
            self._open()
        content = bytearray(3 * height * width)
        if os.preadv(self._file.fileno(), [content], int(self._offsets[index])) < len(content):
            return None
        return torch.frombuffer(content, dtype=torch.uint8).view(3, height, width)

    def _open(self) -> None:
        self._process, self._file = os.getpid(), open_held(self._path)

    def __getstate__(self) -> dict[str, Any]:
        return {**{name: value for name, value in vars(self).items() if name != "_file"}, "_process": 0}
