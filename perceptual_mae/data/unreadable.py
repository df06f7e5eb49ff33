"""Which image files cannot be read: their headers are checked before the first step, and the check is remembered."""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from perceptual_mae.data.dataset import ImageDataset, file_path, max_unreadable
from perceptual_mae.data.decoding import (
    HEIF_REMEDY,
    MAX_PIXELS,
    UnreadableImageError,
    largest_value,
    read_header,
    read_image,
    reads_heif,
)
from perceptual_mae.data.image_tree import Listing
from perceptual_mae.errors import UserError
from perceptual_mae.files import user_cache, write_atomically
from perceptual_mae.progress import OnProgress, no_progress

LIST_NAME = "unreadable.txt"
SPARE_HELD_OUT = 1
"""A held-out split may be small; so many bad files in it must not cost a run that has trained already."""
THREADS = 16
FILES_AT_ONCE = 4096
NAMED = 3
"""So many files are named in a message."""
DARK_SAMPLE = 16
DARK_BELOW = 65536 // 8
"""16-bit images whose values all are below this are likely to store fewer bits."""


class TooManyUnreadableError(UserError):
    """More images of a data set turned out unreadable than it lets pass."""


@dataclass
class ImageCheck:
    """What is known of a run's image files before any is decoded.

    lines: what there is, in words. warnings: what is likely not meant. unreadable: by split, reason by path. refusal:
    why a run on these files must not start, or None.
    """

    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unreadable: dict[str, dict[str, str]] = field(default_factory=dict)
    refusal: str | None = None

    @property
    def all_unreadable(self) -> dict[str, str]:
        """The unreadable files of all splits, with the reasons."""
        return {path: reason for reasons in self.unreadable.values() for path, reason in reasons.items()}


def check_images(
    datasets: Mapping[str, ImageDataset],
    on_progress: OnProgress = no_progress,
    *,
    suspects: Collection[str] = (),
    may_remove: bool = False,
) -> ImageCheck:
    """Check the headers of all files of data sets, given by split, in threads; sets without files have none to check.

    Images in shards are parts of files: how many there are is said, and they are checked when they are read.

    Files that were readable, and have the same size and time since, are not opened again: that is kept in the user's
    cache folder (`perceptual-mae/headers`), where a dry run leaves it for the run. suspects: paths of files that are
    read whole, for their pixels could not be read before. may_remove: nothing has been learnt from these images yet,
    so that a refusal may advise to remove files.
    """
    check = ImageCheck()
    for split, dataset in datasets.items():
        paths = [path for index in range(len(dataset)) if (path := file_path(dataset, index)) is not None]
        if not paths:
            if (summary := getattr(dataset, "summary", None)) is not None:
                check.lines.append(f"{split}: {summary}")
            continue
        max_pixels: int = getattr(dataset, "max_pixels", MAX_PIXELS)
        unreadable, sixteen_bit = _check_headers(paths, max_pixels, suspects, f"{split}, headers", on_progress)
        check.unreadable[split] = unreadable
        check.lines.append(f"{split}: {len(paths):,} image files{_named(unreadable)}")
        spare = 0 if split == "train" else SPARE_HELD_OUT
        check.refusal = check.refusal or too_many_unreadable(dataset, unreadable, spare, may_remove=may_remove)
        listing: Listing | None = getattr(dataset, "listing", None)
        if listing is not None:
            check.lines += [line for line in _links(listing) if line not in check.lines]
            check.warnings += [line for line in _heif(listing) if line not in check.warnings]
        if dark := _dark(sixteen_bit, max_pixels):
            check.warnings.append(f"{split}: {dark}")
    return check


def write_list(path: Path, unreadable: Mapping[str, str]) -> None:
    """Write the unreadable files with their reasons to a text file, a line each; with none there is no such file."""
    if unreadable:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(unreadable_line(name, reason) for name, reason in unreadable.items()))
    elif path.exists():
        path.unlink()


def read_list(path: Path) -> list[str]:
    """Return the paths of the files that such a list names; none where there is no list."""
    try:
        return [line.partition(": ")[0] for line in path.read_text().splitlines()]
    except FileNotFoundError:
        return []


def unreadable_line(path: str, reason: str) -> str:
    """Return the line of a file in the list of unreadable files."""
    return f"{path}: {reason}\n"


def too_many_unreadable(
    dataset: ImageDataset, reasons: Mapping[str, str], spare: int = 0, when: str = "", *, may_remove: bool = False
) -> str | None:
    """Return the message that ends a run where more than the data set's share, and than `spare`, cannot be read.

    may_remove: files may be taken away; a run that has learnt from a list of images wants the same one again.
    """
    share = max_unreadable(dataset)
    if len(reasons) <= max(spare, share * len(dataset)):
        return None
    first, reason = next(iter(reasons.items()))
    is_key = getattr(dataset, "max_unreadable", None) is not None
    return (
        f"{len(reasons)} of {len(dataset)} images cannot be read{when}, more than {100 * share:g}%; "
        f"{'fix or remove them' if may_remove else 'fix them'}"
        f"{', or raise data.max_unreadable' if is_key else ''}; the first is {first}: {reason}"
    )


def _check_headers(
    paths: Sequence[Path], max_pixels: int, suspects: Collection[str], task: str, on_progress: OnProgress
) -> tuple[dict[str, str], list[Path]]:
    """Return the unreadable files with their reasons, and those of 16 bits."""
    folder = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
    cache = _Cache(folder, max_pixels)
    check = partial(_check_header, cache, max_pixels, frozenset(suspects))
    unreadable, sixteen_bit = dict[str, str](), list[Path]()
    with ThreadPoolExecutor(THREADS) as threads:
        for first in range(0, len(paths), FILES_AT_ONCE):
            some = paths[first : first + FILES_AT_ONCE]
            for path, answer in zip(some, threads.map(check, some), strict=True):
                if isinstance(answer, str):
                    unreadable[str(path)] = answer
                elif answer:
                    sixteen_bit.append(path)
            on_progress(task, first + len(some), len(paths))
    cache.save()
    return unreadable, sixteen_bit


def _check_header(cache: "_Cache", max_pixels: int, suspects: Collection[str], path: Path) -> bool | str:
    """Return whether a file has 16 bits, or why it cannot be read."""
    try:
        if str(path) in suspects:
            read_image(path, max_pixels=max_pixels)
        known = cache.find(path)
        if known is not None:
            return known
        header = read_header(path, max_pixels=max_pixels)
    except UnreadableImageError as error:
        return error.reason
    cache.add(path, header.is_sixteen_bit)
    return header.is_sixteen_bit


class _Cache:
    """Which files below a folder had a sound header: by path [size, time in ns, whether 16 bits]; a file of JSON.

    Those that had not are read again every time: what was wrong may have been the disk.
    """

    def __init__(self, folder: str, max_pixels: int) -> None:
        self._folder = folder
        key = hashlib.sha256(f"{folder}\n{max_pixels}\n{reads_heif()}".encode()).hexdigest()[:32]
        self._path = user_cache() / "perceptual-mae" / "headers" / f"{key}.json"
        self._is_changed = False
        try:
            entries = json.loads(self._path.read_text())
            self._entries: dict[str, list[int]] = entries if isinstance(entries, dict) else {}
        except (OSError, ValueError):
            self._entries = {}

    def find(self, path: Path) -> bool | None:
        """Return whether a file that has not changed is of 16 bits; None where it is new or has changed."""
        try:
            entry = self._entries.get(self._name(path))
            if entry is not None and entry[:2] == _fingerprint(path):
                return bool(entry[2])
        except (OSError, LookupError, TypeError):
            pass
        return None

    def add(self, path: Path, is_sixteen_bit: bool) -> None:
        self._entries[self._name(path)] = [*_fingerprint(path), int(is_sixteen_bit)]
        self._is_changed = True

    def save(self) -> None:
        """Write the file; where that fails, the next check opens all images again."""
        if self._is_changed:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self._path, json.dumps(self._entries))
            except OSError:
                pass

    def _name(self, path: Path) -> str:
        return os.path.relpath(os.path.abspath(path), self._folder)


def _fingerprint(path: Path) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def _named(unreadable: Mapping[str, str]) -> str:
    """Say how many files cannot be read, and name the first."""
    if not unreadable:
        return ""
    first = [f"{path}: {reason}" for path, reason in list(unreadable.items())[:NAMED]]
    rest = "; ..." if len(unreadable) > NAMED else ""
    return f", {len(unreadable):,} of which cannot be read: {'; '.join(first)}{rest}"


def _links(listing: Listing) -> Iterable[str]:
    if listing.links:
        yield f"{listing.folder}: {listing.links:,} link(s) followed"
    if listing.repeated:
        yield (
            f"{listing.folder}: {len(listing.repeated):,} folder(s) left out, for links lead to them again: "
            + ", ".join(listing.repeated[:NAMED])
        )


def _heif(listing: Listing) -> Iterable[str]:
    if listing.heif:
        first = ", ".join(listing.heif[:NAMED])
        yield f"{listing.folder}: {len(listing.heif):,} HEIC file(s) left out, such as {first}; {HEIF_REMEDY}"


def _dark(paths: Sequence[Path], max_pixels: int) -> str | None:
    """Say that the first 16-bit images use less than an eighth of their range; None where they use more."""
    values = list[int]()
    for path in paths[:DARK_SAMPLE]:
        try:
            values.append(largest_value(path, max_pixels=max_pixels))
        except UnreadableImageError:
            continue
    if not values or max(values) >= DARK_BELOW:
        return None
    return (
        f"16-bit images use under an eighth of their range (largest value {max(values)} of 65535 in {len(values)}): "
        "65535 is read as white, so these are dark; multiply their values, or save them with 8 bits"
    )
