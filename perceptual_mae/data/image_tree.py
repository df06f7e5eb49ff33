"""Image files in a folder tree, sorted by path, labelled by their top folder, decoded on access."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from perceptual_mae.data.decoding import HEIF_REMEDY, MAX_PIXELS, read_image, reads_heif
from perceptual_mae.errors import UserError

SUFFIXES = frozenset(".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .jp2 .avif".split())  # noqa: SIM905
HEIF_SUFFIXES = frozenset((".heic", ".heif", ".hif"))


@dataclass
class Listing:
    """The images below a folder: paths relative to it with "/", sorted part by part, and what was met on the way.

    links: links that were followed, to images and folders. repeated: folders left out for having been entered before,
    by a loop or another link. heif: HEIC and HEIF files that only pillow-heif could read; not in `paths`.
    """

    folder: Path
    paths: list[str] = field(default_factory=list)
    links: int = 0
    repeated: list[str] = field(default_factory=list)
    heif: list[str] = field(default_factory=list)


class ImageTree:
    """The images below a folder as (uint8 (3, H, W), label or -1), sorted by path.

    A folder with at least two subfolders that hold images, and no image of its own, is labelled: these are the classes.
    `classes` prescribes the names (and so the indices) instead. `exclude` names folders that are not entered. Images
    of more than `max_pixels` are unreadable. `listing` says what else is below the folder; `stray_image` is the first
    image next to folders that would be classes without it, or None.
    """

    def __init__(
        self,
        folder: Path,
        *,
        classes: tuple[str, ...] | None = None,
        exclude: Sequence[Path] = (),
        labelled: bool = True,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.folder, self.max_pixels = folder, max_pixels
        names = class_names(folder, exclude=exclude) if labelled else ()
        unknown = sorted(set(names) - set(classes or names))
        if unknown:
            raise UserError(f"{folder} has classes that the training images lack: {', '.join(unknown[:5])}")
        self.classes = classes if classes and names else names
        self._label_of = {name: label for label, name in enumerate(self.classes)}
        self.listing = read_listing(folder, exclude=exclude)
        self.paths = self.listing.paths
        if not self.paths and self.listing.heif:
            raise UserError(f"no image below {folder} but {len(self.listing.heif)} HEIC file(s); {HEIF_REMEDY}")
        if not self.paths and any(folder.glob("*.tar")):
            raise UserError(f"no image below {folder} but shards (*.tar); read them with data.kind=shards")
        if not self.paths:
            raise UserError(f"no image below {folder}; put files such as .jpg or .png there, or name another folder")
        stray = _stray_image(self.paths) if labelled and not names else None
        self.stray_image = None if stray is None else folder / stray

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return read_image(self.file_path(index), max_pixels=self.max_pixels), self.label(index)

    def file_name(self, index: int) -> str:
        """Return the path of an image's file, relative to the folder, with "/"."""
        return self.paths[index]

    def file_path(self, index: int) -> Path:
        """Return the path of an image's file."""
        return self.folder / self.paths[index]

    def label(self, index: int) -> int:
        """Return the class index of an image without reading it, -1 when the tree is not labelled."""
        return self._label_of.get(self.paths[index].split("/", 1)[0], -1)


def find_folder(root: Path, names: Sequence[str]) -> Path | None:
    """Return the subfolder of `root` with the first of `names` that exists, upper and lower case alike."""
    folders = {entry.name.lower(): Path(entry.path) for entry in _entries(root) if _is_folder(entry)}
    return next((folders[name] for name in names if name in folders), None)


def class_names(folder: Path, *, exclude: Sequence[Path] = ()) -> tuple[str, ...]:
    """Return the sorted names of the class folders, or () when the folder is flat (see `ImageTree`).

    A folder without an image at any depth is no class: `__MACOSX` and the like.
    """
    entries = _entries(folder)
    if any(_is_image_name(entry.name) and not _is_folder(entry) for entry in entries):
        return ()
    skipped = {_identity(path) for path in exclude}
    folders = [entry for entry in entries if _is_folder(entry) and _identity(entry.path) not in skipped]
    names = [entry.name for entry in folders if _holds_image(entry.path, skipped)] if len(folders) > 1 else []
    return tuple(names) if len(names) > 1 else ()


def list_images(folder: Path, *, exclude: Sequence[Path] = ()) -> list[str]:
    """Return the paths of all images below `folder`, as `read_listing` does."""
    return read_listing(folder, exclude=exclude).paths


def read_listing(folder: Path, *, exclude: Sequence[Path] = ()) -> Listing:
    """Return all images below `folder`.

    Links are followed; a folder that is reached twice (a loop, or two links) counts once. Hidden entries are left out.
    """
    listing = Listing(folder)
    entered = {_identity(path): "" for path in exclude}
    listing.paths = sorted(_walk(folder, "", entered, listing), key=lambda path: path.split("/"))
    return listing


def check_root(root: str, hint: str) -> Path:
    """Return the folder `root` with "~" resolved; raises UserError, ending with `hint`, when there is none."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.root: {folder} is not a folder that can be reached; {hint}")
    return folder


def _walk(folder: Path, prefix: str, entered: dict[tuple[int, int], str], listing: Listing) -> Iterator[str]:
    identity = _identity(folder)
    if identity in entered:
        if entered[identity]:  # not one that is excluded
            listing.repeated.append(prefix)
        return
    entered[identity] = prefix or "."
    for entry in _entries(folder):
        if _is_folder(entry):
            listing.links += entry.is_symlink()
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", entered, listing)
        elif _is_image_name(entry.name):  # a broken link too: reading it fails and is reported
            listing.links += entry.is_symlink()
            yield prefix + entry.name
        elif _suffix(entry.name) in HEIF_SUFFIXES:
            listing.heif.append(prefix + entry.name)


def _holds_image(folder: str, skipped: set[tuple[int, int]]) -> bool:
    return any(_walk(Path(folder), "", dict.fromkeys(skipped, ""), Listing(Path(folder))))


def _stray_image(paths: Sequence[str]) -> str | None:
    """Return the first image at the top while two or more folders hold images; None where there is none."""
    folders = {path.partition("/")[0] for path in paths if "/" in path}
    return next((path for path in paths if "/" not in path), None) if len(folders) > 1 else None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be listed ({error.strerror}); check the path and its permissions") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_image_name(name: str) -> bool:
    suffix = _suffix(name)
    return suffix in SUFFIXES or (suffix in HEIF_SUFFIXES and reads_heif())


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
