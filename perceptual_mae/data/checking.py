"""All images of a data set decoded once: which cannot be read, and what the others are."""

import hashlib
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from perceptual_mae.data.dataset import ImageDataset, file_name, file_path, read_finite
from perceptual_mae.data.decoding import MAX_PIXELS, UnreadableImageError, read_header
from perceptual_mae.data.subsets import label_of
from perceptual_mae.data.workers import LostWorkerError, Reader, Samples, in_batches, read_once
from perceptual_mae.errors import LostProcessError
from perceptual_mae.images import Size
from perceptual_mae.progress import OnProgress, no_progress

AT_ONCE = 16
"""Images that a worker reports at once."""
NAMED = 3
"""So many names are given in a warning."""


@dataclass
class CheckedImages:
    """What there is in one split.

    unreadable: reason by name. classes: readable images by class. heights, widths, modes: of readable images; a mode is
    what a pixel of the file is, in Pillow's words (of sets without files, RGB). duplicates: names of images with the
    same pixels, a list for each group. warnings: what is likely not meant.
    """

    num_images: int
    unreadable: dict[str, str] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    heights: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    modes: Counter[str] = field(default_factory=Counter)
    duplicates: list[list[str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_tree(self) -> dict[str, Any]:
        """Return all of it for a file of JSON."""
        return {
            "images": self.num_images,
            "unreadable": self.unreadable,
            "classes": self.classes,
            "height": spread(self.heights),
            "width": spread(self.widths),
            "modes": dict(self.modes.most_common()),
            "duplicates": self.duplicates,
            "warnings": self.warnings,
        }


def spread(values: Sequence[int]) -> dict[str, float] | None:
    """Return the smallest, median and largest value; None where there is none."""
    if not values:
        return None
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def check_datasets(
    datasets: Mapping[str, ImageDataset],
    crop: Size,
    *,
    workers: int = 0,
    on_progress: OnProgress = no_progress,
) -> dict[str, CheckedImages]:
    """Decode all images of data sets, given by split, as training does; nothing is raised for what cannot be read.

    crop: height and width of the crops that are trained on. Images of the same pixels in two splits are warned of, too.
    """
    checked, first = dict[str, CheckedImages](), dict[bytes, tuple[str, str]]()
    for split, dataset in datasets.items():
        checked[split] = images = CheckedImages(len(dataset))
        counts, groups = Counter[int](), dict[bytes, list[str]]()
        for item in _read(dataset, workers, split, on_progress):
            if item.reason is not None:
                images.unreadable[item.name] = item.reason
                continue
            counts[item.label] += 1
            images.heights.append(item.height)
            images.widths.append(item.width)
            images.modes[item.mode] += 1
            groups.setdefault(item.digest, []).append(item.name)
        images.classes = {name: counts[label] for label, name in enumerate(dataset.classes)}
        images.duplicates = [names for names in groups.values() if len(names) > 1]
        images.warnings = _warnings(images, crop)
        shared = [(*first[digest], names[0]) for digest, names in groups.items() if digest in first]
        if shared:
            other, theirs, ours = shared[0]
            images.warnings.append(
                f"{len(shared):,} images are in another split, too, such as {ours} and {other}'s {theirs}"
            )
        first |= {digest: (split, names[0]) for digest, names in groups.items() if digest not in first}
    return checked


def _warnings(images: CheckedImages, crop: Size) -> list[str]:
    sizes = list(zip(images.heights, images.widths, strict=True))
    warnings = []
    small = sum(height < crop[0] or width < crop[1] for height, width in sizes)
    if small:
        warnings.append(f"{small:,} images are smaller than the crop, {crop[0]}x{crop[1]}: they are enlarged")
    if empty := [name for name, count in images.classes.items() if count == 0]:
        warnings.append(f"{len(empty)} classes have no readable image: {', '.join(empty[:NAMED])}")
    repeated = sum(len(names) - 1 for names in images.duplicates)
    if repeated:
        names = " = ".join(images.duplicates[0][:NAMED])
        warnings.append(f"{repeated:,} images have the pixels of another one, such as {names}")
    return warnings


@dataclass(frozen=True)
class _Item:
    """The result of decoding one image; `reason`: why it cannot be read."""

    name: str
    label: int = -1
    height: int = 0
    width: int = 0
    mode: str = ""
    digest: bytes = b""
    reason: str | None = None


class _CheckReader(Reader):
    """Decodes images; runs in the workers."""

    def __init__(self, dataset: ImageDataset) -> None:
        super().__init__()
        self.dataset = dataset

    def __getitem__(self, samples: Samples) -> list[_Item]:
        return [self._check(index) for _, index in samples]

    def _check(self, index: int) -> _Item:
        self.notes.note(index)
        name = file_name(self.dataset, index) or f"image {index}"
        try:
            image, label = read_finite(self.dataset, index)
            mode = _mode(self.dataset, index)
        except UnreadableImageError as error:
            return _Item(name, label_of(self.dataset, index), reason=error.reason)
        _, height, width = image.shape
        digest = hashlib.blake2b(image.contiguous().numpy().tobytes(), digest_size=16, key=f"{height}x{width}".encode())
        return _Item(name, label, height, width, mode, digest.digest())


def _mode(dataset: ImageDataset, index: int) -> str:
    encoded = getattr(dataset, "encoded", None)
    source = encoded(index) if encoded is not None else file_path(dataset, index)
    return "RGB" if source is None else read_header(source, max_pixels=getattr(dataset, "max_pixels", MAX_PIXELS)).mode


def _read(dataset: ImageDataset, workers: int, split: str, on_progress: OnProgress) -> "list[_Item]":
    items = list[_Item]()
    task = f"{split}, decoded"
    on_progress(task, 0, len(dataset))
    try:
        for batch in read_once(_CheckReader(dataset), in_batches(range(len(dataset)), AT_ONCE), workers):
            items += batch
            on_progress(task, len(items), len(dataset))
    except LostWorkerError as lost:
        raise LostProcessError(
            f"{lost} while it read {file_name(dataset, lost.index or 0)}; look at that file, or give --workers 0"
        ) from lost
    return items
