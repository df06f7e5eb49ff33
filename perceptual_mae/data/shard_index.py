"""The index of a shard: where each image of a tar is in it, so that images are read at random without unpacking.

A shard is an ordinary tar in webdataset's layout: members `key.jpg` (or another image) and, where there are labels,
`key.cls` with the number of the class; a key ends at the first dot of a name. Other members of a key are left alone.
"""

import hashlib
import os
import posixpath
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from perceptual_mae.data.file_locks import turn_in
from perceptual_mae.data.image_tree import HEIF_SUFFIXES, SUFFIXES
from perceptual_mae.errors import UserError
from perceptual_mae.files import replacing, user_cache

VERSION = 1
"""Of the file's format; another one is written anew."""
SUFFIX = ".index"
LABEL = "cls"
BLOCK = tarfile.BLOCKSIZE
COMPRESSED = {b"\x1f\x8b": "gzip -d", b"BZ": "bzip2 -d", b"\xfd7": "xz -d", b"\x28\xb5": "zstd -d"}
"""How a compressed file begins, and what unpacks it."""


@dataclass(frozen=True)
class ShardIndex:
    """The images of a shard in their order: first byte and number of bytes of each, its label (-1: none), its name.

    All are arrays (N,): workers that are forked share them, which they would not do with lists of objects.
    """

    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    labels: NDArray[np.int64]
    names: NDArray[np.bytes_]

    def __len__(self) -> int:
        return len(self.offsets)

    def name(self, number: int) -> str:
        """Return the name of an image's member."""
        return bytes(self.names[number]).decode(errors="surrogateescape")


def index_of(shard: Path) -> ShardIndex:
    """Return the index of a shard: the one that is kept, or a new one where there is none or the shard has changed.

    It is kept next to the shard, or in the user's cache (`perceptual-mae/shards`) where that folder is read-only, with
    the shard's size and time. Writers take turns, and no reader sees half a file. Raises UserError, in one line, where
    the tar is damaged or its members do not make images with labels.
    """
    places = (shard.with_name(shard.name + SUFFIX), _in_cache(shard))
    try:
        stamp = _stamp(shard)
        if (index := _kept(places, stamp)) is not None:
            return index
        with turn_in(shard):
            if (index := _kept(places, stamp)) is None:  # nobody else has made it meanwhile
                index = read_members(shard)
                _keep(index, places, stamp)
    except OSError as failure:
        raise UserError(f"data.root: {shard} cannot be read ({failure.strerror or failure})") from failure
    return index


def read_members(shard: Path) -> ShardIndex:
    """Return the index of a shard, read from the headers of its members; raises UserError as `index_of` does."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    others: dict[str, str] = {}
    with shard.open("rb") as file:
        for member in _members(shard, file):
            key, extension = split_name(member.name)
            if f".{extension}" in SUFFIXES | HEIF_SUFFIXES:
                if key in images:
                    raise UserError(f"{shard}: {member.name}: its key {key!r} has another image, {images[key][0]}")
                images[key] = (member.name, member.offset_data, member.size)
            elif extension == LABEL:
                labels[key] = _label(shard, member, file)
            else:
                others.setdefault(key, member.name)
    for key, name in [*others.items(), *((key, f"{key}.{LABEL}") for key in labels)]:
        if key not in images:
            raise UserError(
                f"{shard}: {name}: no image has its key {key!r} (a key ends at the first dot); add or drop it"
            )
    if not images:
        raise UserError(f"{shard}: no image in this shard; remove it")
    unlabelled = [name for key, (name, *_) in images.items() if labels and key not in labels]
    if unlabelled:
        raise UserError(f"{shard}: {unlabelled[0]}: no label, unlike others of this shard; add its .{LABEL}")
    names, offsets, lengths = zip(*images.values(), strict=True)
    return ShardIndex(
        np.array(offsets, dtype=np.int64),
        np.array(lengths, dtype=np.int64),
        np.array([labels.get(key, -1) for key in images], dtype=np.int64),
        np.array([name.encode(errors="surrogateescape") for name in names]),
    )


def split_name(name: str) -> tuple[str, str]:
    """Return the key and the extension of a member's name, as webdataset does: the key ends at the first dot."""
    folder, base = posixpath.split(name)
    stem, _, extension = base.partition(".")
    return posixpath.join(folder, stem), extension.lower()


def _members(shard: Path, file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Yield the files in a tar without hidden ones. Raises UserError where it is damaged, or ends too early."""
    size, end, last = os.fstat(file.fileno()).st_size, 0, ""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
                if not (member.isdir() or (member.isreg() and not member.issparse())):
                    raise UserError(f"{shard}: {member.name}: no plain file; pack files, not links")
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                if end > size:
                    raise UserError(f"{shard}: {member.name}: cut off, the shard ends within it; copy the shard again")
                if member.isfile() and not posixpath.basename(member.name).startswith("."):
                    yield member
                last = member.name
    except (tarfile.TarError, EOFError, ValueError) as failure:
        if isinstance(failure, UserError):
            raise
        raise UserError(_damage(shard, file, last, str(failure))) from failure
    file.seek(end)  # the library takes a damaged header for the end
    mark = file.read(BLOCK)
    if len(mark) < BLOCK or any(mark):
        raise UserError(_damage(shard, file, last, "cut off" if len(mark) < BLOCK else "no header of a member"))


def _damage(shard: Path, file: IO[bytes], last: str, reason: str) -> str:
    file.seek(0)
    start = file.read(2)
    if not last and start in COMPRESSED:
        return f"{shard}: a compressed shard cannot be read at random; unpack it ({COMPRESSED[start]} {shard.name})"
    where = f"after its member {last}" if last else "at its start"
    return f"{shard}: damaged {where} ({' '.join(reason.split())}); copy or make the shard again"


def _label(shard: Path, member: tarfile.TarInfo, file: IO[bytes]) -> int:
    file.seek(member.offset_data)
    text = file.read(min(member.size, 64))
    if not text.strip().isdigit() or (label := int(text)) >= 2**31:
        raise UserError(f"{shard}: {member.name}: {text.decode(errors='replace')!r} is no number of a class, from 0 on")
    return label


def _stamp(shard: Path) -> NDArray[np.int64]:
    """Return what an index belongs to: the format's version, and the shard's size and time."""
    status = shard.stat()
    return np.array([VERSION, status.st_size, status.st_mtime_ns], dtype=np.int64)


def _kept(places: tuple[Path, ...], stamp: NDArray[np.int64]) -> ShardIndex | None:
    """Return the index that is kept at one of the places; None where there is none, or it is of another shard."""
    for place in places:
        with (
            suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile),
            np.load(place, allow_pickle=False) as arrays,
        ):
            if np.array_equal(arrays["stamp"], stamp):
                return ShardIndex(*(arrays[field.name] for field in fields(ShardIndex)))
    return None


def _keep(index: ShardIndex, places: tuple[Path, ...], stamp: NDArray[np.int64]) -> None:
    """Write an index to the first of the places that lets itself be written to; to none where none does."""
    for place in places:
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            with replacing(place) as partial, partial.open("wb") as file:
                np.savez(file, stamp=stamp, **{field.name: getattr(index, field.name) for field in fields(index)})
            return


def _in_cache(shard: Path) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.abspath(shard))).hexdigest()[:32]
    return user_cache() / "perceptual-mae" / "shards" / f"{name}{SUFFIX}"
