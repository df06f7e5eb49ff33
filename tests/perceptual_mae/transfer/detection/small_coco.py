"""A small folder in COCO's format: rectangles as objects, with gaps in the ids of categories."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 7, "name": "tall"}, {"id": 2, "name": "wide"}]
"""Labels go by ids: 1 is wide, 2 is tall."""


def rectangle(box: tuple[float, float, float, float]) -> list[float]:
    """The polygon of a box [left, top, width, height]."""
    left, top, width, height = box
    return [left, top, left + width, top, left + width, top + height, left, top + height]


def annotation(number: int, image: int, box: Any, category: int = 2, **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": [rectangle(box)],
        **more,
    }


def content_of(num_images: int = 2) -> dict[str, list[dict[str, Any]]]:
    """Two objects in image 0, a crowd and an object in image 1, one object in each further one; 48 x 32 pixels."""
    images = [{"id": 10 + each, "file_name": f"{each}.png", "width": 48, "height": 32} for each in range(num_images)]
    crowd = {"size": [32, 48], "counts": [32 * 40, 32 * 8]}  # the last eight columns
    annotations = [
        annotation(1, 10, (4, 6, 20, 8)),
        annotation(2, 10, (30, 2, 6, 24), category=7),
        annotation(3, 11, (2, 3, 16, 10)),
        annotation(4, 11, (40, 0, 8, 32), iscrowd=1, segmentation=crowd),
        *(annotation(3 + each, 10 + each, (8, 4, 10, 20), category=7) for each in range(2, num_images)),
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def write_coco(folder: Path, content: Mapping[str, Any] | None = None, name: str = "train") -> tuple[Path, Path]:
    """Write the images and the file of annotations; return the folder of images and the file."""
    content = content_of() if content is None else content
    images = folder / name
    images.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(content["images"]):
        pixels = np.full((32, 48, 3), 40 + 20 * number, dtype=np.uint8)
        for each in content["annotations"]:
            if each["image_id"] == image["id"]:
                left, top, width, height = (int(side) for side in each["bbox"])
                pixels[top : top + height, left : left + width] = 255
        Image.fromarray(pixels).save(images / image["file_name"])
    file = folder / f"instances_{name}.json"
    file.write_text(json.dumps(content))
    return images, file
