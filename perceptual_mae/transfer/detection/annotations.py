"""COCO's file of annotations, read and checked: any mistake in it is named in one line before anything is trained.

Boxes here are (left, top, right, bottom) in pixels; the file has [left, top, width, height].
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perceptual_mae.errors import UserError

Box = tuple[float, float, float, float]
Segmentation = list[list[float]] | dict[str, Any]
"""Polygons, each [x, y, x, y, ...], or run lengths: {"size": [height, width], "counts": list or compressed string}."""

OVERHANG = 1.0
"""Pixels by which a box may lie beyond its image without being a mistake; it is cut at the border."""
SHOWN = 3
"""Mistakes that are named; the others are counted."""


@dataclass(frozen=True)
class Annotation:
    """One object: its label (1 to K), box, outline and area in pixels; crowds and what is to be ignored alike."""

    label: int
    box: Box
    segmentation: Segmentation
    area: float
    is_crowd: bool


@dataclass(frozen=True)
class AnnotatedImage:
    """An image of the file: its id, path relative to the folder, size (height, width) and objects."""

    id: int
    file_name: str
    size: tuple[int, int]
    objects: list[Annotation] = field(default_factory=list)


@dataclass(frozen=True)
class Annotations:
    """A checked file: images in its order, and names and ids of the categories, of which label k has the k-1-th.

    degenerate: objects that were left out for a box without width or height.
    """

    images: list[AnnotatedImage]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    degenerate: int


def read_annotations(path: Path, folder: Path) -> Annotations:
    """Return the annotations of a file, whose images are below `folder`; categories are sorted by their ids.

    Raises UserError that names the first mistakes: each with the annotation or image, what is wrong, what to do.
    """
    content = _read(path)
    categories = dict(sorted(_by_id(content, "categories", path).items()))
    names = [category.get("name") for category in categories.values()]
    if not categories or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: its categories need an id and a name each")
    labels = {category: label for label, category in enumerate(categories, start=1)}
    images: dict[int, AnnotatedImage] = {}
    mistakes: list[str] = []
    for identity, image in _by_id(content, "images", path).items():
        problem = _image_problem(image, folder)
        if problem:
            mistakes.append(f"image {identity}: {problem}")
        else:
            images[identity] = AnnotatedImage(identity, image["file_name"], (image["height"], image["width"]))
    degenerate, named = 0, {entry["id"] for entry in content["images"]} - set(images)
    for place, entry in enumerate(content["annotations"]):
        name = f"annotation {entry.get('id', place) if isinstance(entry, dict) else place}"
        try:
            image_id, annotation = _annotation(entry, images, labels)
        except ValueError as problem:
            if not isinstance(entry, dict) or entry.get("image_id") not in named:  # its image is named already
                mistakes.append(f"{name}: {problem}")
            continue
        if annotation is None:
            degenerate += 1
        else:
            images[image_id].objects.append(annotation)
    if mistakes:
        more = f"\n{path}: and {len(mistakes) - SHOWN} more mistakes" if len(mistakes) > SHOWN else ""
        raise UserError("\n".join(f"{path}: {mistake}" for mistake in mistakes[:SHOWN]) + more)
    return Annotations(list(images.values()), tuple(map(str, names)), tuple(categories), degenerate)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as failure:
        raise UserError(f"{path}: {failure.strerror or failure}; name the file of annotations") from failure
    except ValueError as error:  # of the bytes, or of the JSON
        raise UserError(f"{path}: is no JSON ({' '.join(str(error).split())[:100]})") from error
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise UserError(f"{path}: has no list of {part}; give annotations in COCO's format")
    return dict(content)


def _by_id(content: Mapping[str, Any], part: str, path: Path) -> dict[int, dict[str, Any]]:
    entries: dict[int, dict[str, Any]] = {}
    for place, entry in enumerate(content[part]):
        identity: Any = entry.get("id") if isinstance(entry, dict) else None
        if not _is_whole(identity):
            raise UserError(f"{path}: entry {place} of {part} has no whole number as its id")
        if identity in entries:
            raise UserError(f"{path}: two entries of {part} have the id {identity}")
        entries[identity] = entry
    return entries


def _image_problem(image: Mapping[str, Any], folder: Path) -> str | None:
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        return "has no file_name"
    sides = (image.get("height"), image.get("width"))
    if not all(_is_whole(side) and side > 0 for side in sides if side is not None) or None in sides:
        return f"({name}) has height {sides[0]!r} and width {sides[1]!r}; give its size in pixels"
    if not (folder / name).is_file():
        return f"{folder / name} does not exist; add the file, or remove the image and its annotations"
    return None


def _annotation(
    entry: Any, images: Mapping[int, AnnotatedImage], labels: Mapping[int, int]
) -> tuple[int, Annotation | None]:
    """Return the image's id and the object, None where its box is empty; raise ValueError for a mistake."""
    if not isinstance(entry, dict):
        raise ValueError("is no mapping of keys")
    values: dict[str, Any] = entry
    image_id, category = values.get("image_id"), values.get("category_id")
    if not isinstance(image_id, int) or image_id not in images:
        raise ValueError(f"its image_id {image_id!r} is of no image; add the image, or remove the annotation")
    image = images[image_id]
    where = f"({image.file_name})"
    if not isinstance(category, int) or category not in labels:
        raise ValueError(f"{where} its category_id {category!r} is of no category; add it, or correct the id")
    box = _box(values.get("bbox"), image, where)
    is_crowd = bool(values.get("iscrowd")) or bool(values.get("ignore"))
    segmentation: Any = values.get("segmentation")
    if problem := _segmentation_problem(segmentation, image.size):
        raise ValueError(f"{where} its segmentation {problem}; correct or remove it")
    if box is None:
        return image_id, None
    area: Any = values.get("area")
    if not _is_number(area) or area < 0:
        area = (box[2] - box[0]) * (box[3] - box[1])
    return image_id, Annotation(labels[category], box, segmentation, float(area), is_crowd)


def _box(bbox: Any, image: AnnotatedImage, where: str) -> Box | None:
    """Return the box cut at the image's border, None for one without width or height."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        raise ValueError(f"{where} its bbox is {bbox!r}; give [left, top, width, height] in pixels")
    left, top, width, height = map(float, bbox)
    if width < 0 or height < 0:
        raise ValueError(f"{where} its bbox {bbox} has a negative side; give [left, top, width, height]")
    right, bottom = left + width, top + height
    rows, columns = image.size
    if min(left, top) < -OVERHANG or right > columns + OVERHANG or bottom > rows + OVERHANG:
        raise ValueError(f"{where} its bbox {bbox} lies outside the image of {columns}x{rows} pixels; correct it")
    box = (max(0.0, left), max(0.0, top), min(float(columns), right), min(float(rows), bottom))
    return box if box[2] > box[0] and box[3] > box[1] else None


def _segmentation_problem(segmentation: Any, size: tuple[int, int]) -> str | None:
    """Return what is wrong with polygons or run lengths of an image (height, width), None where nothing is."""
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if segmentation.get("size") != list(size):
            return f"has run lengths for the size {segmentation.get('size')!r}, not {list(size)}"
        if isinstance(counts, str):
            return None
        if not isinstance(counts, list) or not all(_is_whole(count) and count >= 0 for count in counts):
            return "has counts that are neither whole numbers nor a compressed string"
        total = sum(counts)
        return None if total == size[0] * size[1] else f"has run lengths of {total} pixels, not {size[0] * size[1]}"
    if not isinstance(segmentation, list) or not segmentation:
        return "is missing: Mask R-CNN needs polygons or run lengths"
    return next((problem for polygon in segmentation if (problem := _polygon_problem(polygon))), None)


def _polygon_problem(polygon: Any) -> str | None:
    if not isinstance(polygon, list) or not all(map(_is_number, polygon)):
        return "has a polygon that is no list of finite numbers"
    if len(polygon) < 6 or len(polygon) % 2:
        return f"has a polygon of {len(polygon)} numbers; three points or more need 6, 8, ..."
    return None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
