"""The images of the demo: held-out ones and files that are offered, and what visitors send."""

import hashlib
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from perceptual_mae.data.decoding import EncodedImage, UnreadableImageError, read_header, read_image
from perceptual_mae.data.subsets import random_subset
from perceptual_mae.demo.methods import Method
from perceptual_mae.errors import UserError
from perceptual_mae.images import Size
from perceptual_mae.run.run import Run

MAX_PIXELS = 2**26
"""Of a visitor's photograph: 67 million, 200 MB when decoded."""
MOST_KEPT = 64
"""Visitors' photographs that are kept; the one that was used longest ago goes first."""


@dataclass(frozen=True)
class Photograph:
    """An image as each preparation of the methods has it, uint8 (3, H, W); `note`: what was done to it, in words."""

    key: str
    label: str
    views: tuple[Tensor, ...]
    note: str = ""


class Album:
    """The images of one demo. Those that are offered stay; those that visitors send make room for each other."""

    def __init__(self, methods: Sequence[Method]) -> None:
        by_preparation = {method.preparation: method.transform for method in methods}
        self._transforms = list(by_preparation.values())
        self.view_of = [list(by_preparation).index(method.preparation) for method in methods]
        """By number of a method, which view of a photograph it is shown."""
        self.offered: list[Photograph] = []
        self._sent: OrderedDict[str, Photograph] = OrderedDict()
        self._lock, self._decoding = threading.Lock(), threading.Lock()

    def offer(self, image: Tensor, label: str) -> None:
        """Offer an image, uint8 (3, H, W) of any size, to all visitors."""
        self.offered.append(self._prepare(image, f"offered-{len(self.offered)}", label))

    def add(self, encoded: bytes) -> Photograph:
        """Return the photograph of a file's bytes, which is kept. Raises UnreadableImageError."""
        key = hashlib.sha256(encoded).hexdigest()
        with self._decoding:  # one at a time, for the sake of memory
            photograph = self._prepare(_decode(encoded), key, "your photograph")
        with self._lock:
            self._sent[key] = photograph
            while len(self._sent) > MOST_KEPT:
                self._sent.popitem(last=False)
        return photograph

    def get(self, key: str) -> Photograph | None:
        """Return a photograph by its key, or None where it is not here (any more)."""
        for photograph in self.offered:
            if photograph.key == key:
                return photograph
        with self._lock:
            if key in self._sent:
                self._sent.move_to_end(key)
            return self._sent.get(key)

    def _prepare(self, image: Tensor, key: str, label: str) -> Photograph:
        views = tuple(transform(image).contiguous() for transform in self._transforms)
        size = (image.shape[-2], image.shape[-1])
        return Photograph(key, label, views, _changes(size, views[0]))


def offer_held_out(album: Album, run: Run, count: int) -> str:
    """Offer held-out images of a run's data set; return why there are none, "" where there are."""
    try:
        dataset = run.config.data.build(run.config.evaluation.split)
        for index in random_subset(len(dataset), count):
            try:
                image, _ = dataset[index]
            except UnreadableImageError:
                continue
            album.offer(image, f"held-out image {index}")
    except (UserError, OSError) as failure:
        return " ".join(str(failure).split())
    return "" if album.offered else "none of them can be read"


def offer_files(album: Album, paths: Sequence[Path]) -> None:
    """Offer image files; UserError with a line for each that cannot be read."""
    mistakes = []
    for path in paths:
        try:
            album.offer(read_image(path, max_pixels=MAX_PIXELS), path.name)
        except UnreadableImageError as failure:
            mistakes.append(f"{path}: cannot be read ({failure.reason}); give another image file or leave it out")
    if mistakes:
        raise UserError("\n".join(mistakes))


def _decode(encoded: bytes) -> Tensor:
    """Return the image of a file's bytes, uint8 (3, H, W). Raises UnreadableImageError."""
    source = EncodedImage("a visitor's file", encoded)
    header = read_header(source, max_pixels=sys.maxsize)  # our own limit, in words for visitors
    if header.width * header.height > MAX_PIXELS:
        size = f"{header.width} x {header.height} pixels are more than {MAX_PIXELS:,}, the limit"
        raise UnreadableImageError(source.name, size)
    return read_image(source, max_pixels=MAX_PIXELS)


def _changes(size: Size, view: Tensor) -> str:
    """Say what was done to an image of `size` to get `view` (3, H, W), or nothing where nothing was."""
    height, width = view.shape[-2:]
    if size == (height, width):
        return ""
    return f"{size[1]} x {size[0]} pixels, scaled and cropped in the middle to {width} x {height}"
