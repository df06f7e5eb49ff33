"""Procedural images: large plain, graded and striped shapes over smooth backgrounds; nothing is downloaded.

A masked autoencoder learns here in minutes that outlines and gradients continue, and that no one colour fills a hole.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from perceptual_mae.data.dataset import SPLITS, NumImages, Seed, Side, check_split
from perceptual_mae.data.shape_drawing import KINDS, NUM_DRAWS, coverage, draw, read_scenes
from perceptual_mae.errors import UserError
from perceptual_mae.seeding import stream

PIXELS_AT_ONCE = 1 << 19
"""Bounds the memory that drawing takes."""
MAX_CACHED_BYTES = 1 << 30


@dataclass(frozen=True)
class Annotations:
    """The visible parts of the shapes of an image, largest shape first, without those under 1% of it.

    boxes: float (N, 4), x1 y1 x2 y2 in pixels; labels: int64 (N,); masks: bool (N, H, W), disjoint.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor


class Shapes:
    """Procedural scenes of one to three shapes, a function of (seed, split, index), labelled by the largest shape.

    All are drawn at the start and held in memory as bytes (20,000 of 32x32 take some seconds and 61 MB), or each on
    access where that would exceed 1 GiB.

    Options:
        size: side of the square images in pixels, 8 or more [ours]
        num_images: training images; val and test have a tenth as many each [ours]
        seed: seed of all scenes [ours]
    """

    classes: tuple[str, ...] = KINDS

    def __init__(self, split: str, *, size: Side = 32, num_images: NumImages = 20000, seed: Seed = 0) -> None:
        if size < 8:
            raise UserError(f"data.size is {size}; shapes need at least 8 pixels")
        if num_images < 1:
            raise UserError(f"data.num_images is {num_images}; give at least 1")
        self._split = SPLITS.index(check_split(split))
        self._size = size
        self._seed = seed
        self._num_images = num_images if split == "train" else max(1, num_images // 10)
        fits = self._num_images * 3 * size * size <= MAX_CACHED_BYTES
        self._drawn = _draw_all(self._split, size, self._num_images, seed) if fits else None

    def __len__(self) -> int:
        return self._num_images

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self._check(index)
        if self._drawn is None:
            images, labels = _draw_some(self._split, self._size, self._seed, index, index + 1)
            return images[0], int(labels[0])
        return self._drawn[0][index], int(self._drawn[1][index])

    def annotations(self, index: int) -> Annotations:
        """Return boxes, labels and instance masks of the visible shapes of image `index`."""
        self._check(index)
        scene = read_scenes(_draws(self._split, self._seed, index, index + 1))
        free = torch.ones(self._size, self._size, dtype=torch.bool)
        visible: list[Tensor] = []
        for shape in reversed(range(int(scene.counts[0]))):  # the last one is on top
            covered = coverage(scene, shape, torch.tensor([0]), self._size).view_as(free) >= 0.5
            visible.insert(0, covered & free)
            free &= ~covered
        masks = torch.stack(visible)
        areas = masks.sum((1, 2))
        kept = areas >= (0.01 * areas[0]).clamp(min=1)
        return Annotations(masks_to_boxes(masks[kept]), scene.kinds[0, : len(masks)][kept], masks[kept])

    def _check(self, index: int) -> None:
        if not 0 <= index < self._num_images:
            raise IndexError(f"no image {index} among {self._num_images} shapes")


def _draws(split: int, seed: int, first: int, last: int) -> Tensor:
    """Return uniform numbers (N, NUM_DRAWS) for the scenes first..last-1, a stream of its own for each."""
    return torch.stack([torch.rand(NUM_DRAWS, generator=stream("shapes", seed, split, i)) for i in range(first, last)])


def _draw_some(split: int, size: int, seed: int, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Return uint8 images (N, 3, size, size) and labels (N,) of the scenes first..last-1."""
    scenes = read_scenes(_draws(split, seed, first, last))
    return draw(scenes, size), scenes.kinds[:, 0]


@functools.lru_cache(maxsize=4)
def _draw_all(split: int, size: int, num_images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return all uint8 images (N, 3, size, size) and labels (N,) of a split."""
    images = torch.empty(num_images, 3, size, size, dtype=torch.uint8)
    labels = torch.empty(num_images, dtype=torch.int64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so many small operations gain nothing by more, and lose tenfold on a busy machine
    try:
        chunk = max(1, PIXELS_AT_ONCE // size**2)
        for first in range(0, num_images, chunk):
            last = min(first + chunk, num_images)
            images[first:last], labels[first:last] = _draw_some(split, size, seed, first, last)
    finally:
        torch.set_num_threads(threads)
    return images, labels


def masks_to_boxes(masks: Tensor) -> Tensor:
    """Return the smallest boxes (N, 4), x1 y1 x2 y2, around the True pixels of masks (N, H, W), none of them empty."""
    columns, rows = masks.any(1).int(), masks.any(2).int()
    left, top = columns.argmax(1), rows.argmax(1)
    right, bottom = masks.shape[2] - columns.flip(1).argmax(1), masks.shape[1] - rows.flip(1).argmax(1)
    return torch.stack([left, top, right, bottom], dim=1).float()
