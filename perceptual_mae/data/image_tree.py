"""Image files in a folder tree, sorted by path, labelled by their top folder, decoded on access."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from perceptual_mae.data.decoding import read_image
from perceptual_mae.errors import UserError

SUFFIXES = frozenset(".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .jp2 .avif".split())  # noqa: SIM905


class ImageTree:
    """The images below a folder as (uint8 (3, H, W), label or -1), sorted by path.

    A folder with at least two subfolders and no image of its own is labelled: its subfolders are the classes.
    `classes` prescribes the names (and so the indices) instead. `exclude` names folders that are not entered.
    """

    def __init__(
        self,
        folder: Path,
        *,
        classes: tuple[str, ...] | None = None,
        exclude: Sequence[Path] = (),
        labelled: bool = True,
    ) -> None:
        self.folder = folder
        names = class_names(folder, exclude=exclude) if labelled else ()
        unknown = sorted(set(names) - set(classes or names))
        if unknown:
            raise UserError(f"{folder} has classes that the training images lack: {', '.join(unknown[:5])}")
        self.classes = classes if classes and names else names
        self._label_of = {name: label for label, name in enumerate(self.classes)}
        self.paths = list_images(folder, exclude=exclude)
        if not self.paths:
            raise UserError(f"no image below {folder}; put files such as .jpg or .png there, or name another folder")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = self.paths[index]
        return read_image(self.folder / path), self.label(index)

    def file_name(self, index: int) -> str:
        """Return the path of an image's file, relative to the folder, with "/"."""
        return self.paths[index]

    def label(self, index: int) -> int:
        """Return the class index of an image without reading it, -1 when the tree is not labelled."""
        return self._label_of.get(self.paths[index].split("/", 1)[0], -1)


def find_folder(root: Path, names: Sequence[str]) -> Path | None:
    """Return the subfolder of `root` with the first of `names` that exists, upper and lower case alike."""
    folders = {entry.name.lower(): Path(entry.path) for entry in _entries(root) if _is_folder(entry)}
    return next((folders[name] for name in names if name in folders), None)


def class_names(folder: Path, *, exclude: Sequence[Path] = ()) -> tuple[str, ...]:
    """Return the sorted names of the class folders, or () when the folder is flat (see `ImageTree`)."""
    entries = _entries(folder)
    skipped = {_identity(path) for path in exclude}
    folders = [entry.name for entry in entries if _is_folder(entry) and _identity(entry.path) not in skipped]
    has_images = any(_is_image_name(entry.name) and not _is_folder(entry) for entry in entries)
    return () if has_images or len(folders) < 2 else tuple(folders)


def list_images(folder: Path, *, exclude: Sequence[Path] = ()) -> list[str]:
    """Return the paths of all images below `folder`, relative to it with "/", sorted part by part.

    Links are followed; a folder that is reached twice (a loop, or two links) counts once. Hidden entries are left out.
    """
    entered = {_identity(path) for path in exclude}
    return sorted(_walk(folder, "", entered), key=lambda path: path.split("/"))


def check_root(root: str, hint: str) -> Path:
    """Return the folder `root` with "~" resolved; raises UserError, ending with `hint`, when there is none."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.root: {folder} is not a folder that can be reached; {hint}")
    return folder


def _walk(folder: Path, prefix: str, entered: set[tuple[int, int]]) -> Iterator[str]:
    identity = _identity(folder)
    if identity in entered:
        return
    entered.add(identity)
    for entry in _entries(folder):
        if _is_folder(entry):
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", entered)
        elif _is_image_name(entry.name):  # a broken link too: reading it fails and is reported
            yield prefix + entry.name


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
    return os.path.splitext(name)[1].lower() in SUFFIXES
