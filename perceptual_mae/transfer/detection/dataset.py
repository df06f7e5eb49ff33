"""Images with objects in COCO's format, and how they are prepared for Mask R-CNN.

Shapes: N objects; H x W pixels of an image; S pixels a side of what the detector is given.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms.v2 import functional as F

from perceptual_mae.data.decoding import read_image
from perceptual_mae.errors import UserError
from perceptual_mae.images import Size
from perceptual_mae.transfer.detection.annotations import AnnotatedImage, Annotation, read_annotations
from perceptual_mae.transfer.detection.batch import PreparedImage, Target
from perceptual_mae.transfer.headers import check_each, header_size, is_same_size
from perceptual_mae.transfer.transforms import JitterCrop, fitted, resize

REMEDY = "pip install 'perceptual-mae[transfer]'"
SMALLEST_SIDE = 1.0
"""Pixels below which a box is gone (torchvision's default)."""


def coco_masks() -> Any:
    """Return pycocotools.mask; raise UserError where it is not installed."""
    try:
        from pycocotools import mask
    except ImportError as missing:
        raise UserError(f"pmae detect needs pycocotools and torchmetrics: {REMEDY}") from missing
    return mask


@dataclass(frozen=True)
class Sample:
    """An image (3, H, W), uint8, and its objects: boxes (N, 4), labels (N,), masks uint8 (N, H, W)."""

    image: tv_tensors.Image
    boxes: tv_tensors.BoundingBoxes
    labels: Tensor
    masks: tv_tensors.Mask


class CocoImages:
    """The images of a folder that a file of annotations in COCO's format names, with their objects.

    `classes` are the names of labels 1 to K, `category_ids` the file's ids of them. An item is a `Sample` without
    crowds: torchvision's losses cannot leave a region out. with_empty: keep images in which no such object is. Raises
    UserError for mistakes in the file; reading an image raises it where the file has another size.
    """

    def __init__(self, folder: Path, file: Path, *, with_empty: bool = True) -> None:
        self.folder, self.file = folder, file
        annotations = read_annotations(file, folder)
        self.classes, self.category_ids = annotations.classes, annotations.category_ids
        self.degenerate = annotations.degenerate
        self.images = [image for image in annotations.images if with_empty or _countable(image.objects)]
        if not self.images:
            raise UserError(f"{file}: has no image{'' if with_empty else ' with an object'}; name another file")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        described = self.images[index]
        image = read_image(self.folder / described.file_name)
        if tuple(image.shape[-2:]) != described.size:
            raise UserError(_other_size(self, described, (image.shape[-2], image.shape[-1])))
        target = self._target(index, _countable(described.objects))
        boxes: Any = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=described.size)
        return Sample(tv_tensors.Image(image), boxes, target["labels"], tv_tensors.Mask(target["masks"]))

    def first(self, count: int | None) -> "CocoImages":
        """Return the first images alone; None: all."""
        first = copy.copy(self)
        first.images = self.images[:count]
        return first

    def check_headers(self) -> None:
        """Check the headers of all images; raise UserError that names the first that is none or of another size."""

        def flaw(image: AnnotatedImage) -> str | None:
            size = header_size(self.folder / image.file_name)
            return None if is_same_size(size, image.size) else _other_size(self, image, size)

        check_each(self.images, flaw)

    def truth(self, index: int) -> Target:
        """Return what detections are scored by: boxes, labels, masks (N, H, W), iscrowd and area, each (N, ...)."""
        described = self.images[index]
        target = self._target(index, described.objects)
        target["iscrowd"] = torch.tensor([int(each.is_crowd) for each in described.objects], dtype=torch.int64)
        target["area"] = torch.tensor([each.area for each in described.objects], dtype=torch.float64)
        return target

    def _target(self, index: int, objects: list[Annotation]) -> Target:
        described = self.images[index]
        try:
            masks = [decode_mask(each.segmentation, described.size) for each in objects]
        except ValueError as error:
            place = f"image {described.id} ({described.file_name})"
            raise UserError(f"{self.file}: {place} has run lengths that cannot be decoded ({error})") from error
        return {
            "boxes": torch.tensor([each.box for each in objects], dtype=torch.float32).view(-1, 4),
            "labels": torch.tensor([each.label for each in objects], dtype=torch.int64),
            "masks": torch.stack(masks) if masks else torch.empty((0, *described.size), dtype=torch.uint8),
        }


def decode_mask(segmentation: Any, size: tuple[int, int]) -> Tensor:
    """Return a mask (H, W), uint8 0 or 1, of polygons or run lengths, drawn by pycocotools.

    Raises ValueError for a compressed string that is none.
    """
    mask = coco_masks()
    is_compressed = isinstance(segmentation, dict) and isinstance(segmentation["counts"], str)
    encoded = segmentation if is_compressed else mask.frPyObjects(segmentation, *size)
    if isinstance(encoded, list):  # one for each polygon
        encoded = mask.merge(encoded)
    return torch.from_numpy(mask.decode(encoded))


class TrainTransform:
    """Large-scale jitter to S x S, then boxes cut at the border; what vanishes is left out.

    A box that the border cut becomes the smallest around what is left of its mask (detectron2's `recompute_boxes`).
    """

    def __init__(self, side: int, *, scale: tuple[float, float], flip: float) -> None:
        self.jitter = JitterCrop((side, side), scale=scale, flip=flip)

    def __call__(self, sample: Sample, generator: torch.Generator) -> PreparedImage:
        image, (boxes, masks) = self.jitter(sample.image, [sample.boxes, sample.masks], generator)
        boxes, masks, labels = visible_objects(boxes, masks, sample.labels)
        target = {"boxes": boxes, "labels": labels, "masks": masks}
        return PreparedImage(image.as_subclass(Tensor), target)


class EvaluationTransform:
    """An image scaled until it just fits into S x S, padded with black to the right and below."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, sample: Sample) -> PreparedImage:
        size = (sample.image.shape[-2], sample.image.shape[-1])
        scaled = fitted(size, (self.side, self.side))
        image = F.pad(resize(sample.image, scaled), [0, 0, self.side - scaled[1], self.side - scaled[0]])
        return PreparedImage(image.as_subclass(Tensor), {}, scaled, size)


def visible_objects(boxes: Any, masks: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes (N, 4), masks and labels of what is left in the canvas, boxes cut at its border."""
    cut: Any = F.clamp_bounding_boxes(boxes)
    _, is_left = F.sanitize_bounding_boxes(
        cut.as_subclass(Tensor), format=cut.format, canvas_size=cut.canvas_size, min_size=SMALLEST_SIDE
    )
    is_left = is_left & masks.flatten(1).bool().any(1)
    was_cut = (cut.as_subclass(Tensor) != boxes.as_subclass(Tensor)).any(1)[is_left]
    left, kept = cut.as_subclass(Tensor)[is_left], masks.as_subclass(Tensor)[is_left]
    if was_cut.any():
        tight = masks_to_boxes(kept[was_cut])
        tight[:, 2:] += 1  # the last pixel's far side
        left[was_cut] = tight
    return left.float(), kept, labels[is_left]


def _other_size(data: CocoImages, image: AnnotatedImage, size: Size) -> str:
    actual, stated = (f"{width}x{height}" for height, width in (size, image.size))
    return f"{data.folder / image.file_name}: has {actual} pixels, but {data.file} says {stated}; correct one of them"


def _countable(objects: list[Annotation]) -> list[Annotation]:
    return [each for each in objects if not each.is_crowd]
