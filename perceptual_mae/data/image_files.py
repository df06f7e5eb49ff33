"""Image files below a folder or named one by one, none of them labelled, and the sizes that their headers say."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from torch import Tensor

from perceptual_mae.data.decoding import MAX_PIXELS, UnreadableImageError, read_header, read_image
from perceptual_mae.data.image_tree import ImageTree, Listing
from perceptual_mae.errors import UserError
from perceptual_mae.images import Size

THREADS = 16


class ImageFiles:
    """Image files, in the order of their paths, as (uint8 RGB (3, H, W), -1).

    names: what each is called. sizes: height and width of each by its header; an image of another size is unreadable
    (None: any will do). Images of more than `max_pixels` are unreadable; max_unreadable: the share of them that a pass
    goes on with (None: that of data sets that say nothing). listing: how the files were found, where they were.
    """

    classes: tuple[str, ...] = ()

    def __init__(
        self,
        paths: Sequence[Path],
        names: Sequence[str],
        *,
        sizes: Sequence[Size | None] | None = None,
        max_pixels: int = MAX_PIXELS,
        max_unreadable: float | None = None,
        listing: Listing | None = None,
    ) -> None:
        self.paths, self.names, self.sizes = list(paths), list(names), sizes
        self.max_pixels, self.max_unreadable, self.listing = max_pixels, max_unreadable, listing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = read_image(self.paths[index], max_pixels=self.max_pixels)
        if self.sizes is not None and tuple(image.shape[1:]) != self.sizes[index]:
            raise UnreadableImageError(str(self.paths[index]), "has another size than its header said")
        return image, -1

    def file_name(self, index: int) -> str:
        """Return what an image is called."""
        return self.names[index]

    def file_path(self, index: int) -> Path:
        """Return the path of an image's file."""
        return self.paths[index]


def images_below(folder: Path, *, max_pixels: int = MAX_PIXELS, max_unreadable: float | None = None) -> ImageFiles:
    """Return all images below a folder, called by their paths relative to it; UserError where there are none."""
    tree = ImageTree(folder, labelled=False)
    paths = [folder / name for name in tree.paths]
    return ImageFiles(paths, tree.paths, max_pixels=max_pixels, max_unreadable=max_unreadable, listing=tree.listing)


def check_any(files: ImageFiles, readable: int) -> None:
    """Raise UserError where none of the images is readable."""
    if not readable:
        others = f", nor any other of {len(files)} images" if len(files) > 1 else ""
        raise UserError(f"{files.paths[0]} cannot be read{others}; fix or replace them")


def header_sizes(files: ImageFiles) -> list[Size | None]:
    """Return height and width of each image as its header says; None where that cannot be read."""
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(partial(_header_size, files.max_pixels), files.paths))


def _header_size(max_pixels: int, path: Path) -> Size | None:
    try:
        return read_header(path, max_pixels=max_pixels).upright_size
    except UnreadableImageError:
        return None
