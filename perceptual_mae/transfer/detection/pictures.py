"""Pictures of detections next to the truth: the best images, the worst, and fixed ones."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from perceptual_mae.images import Size
from perceptual_mae.transfer.detection.batch import Target
from perceptual_mae.transfer.detection.dataset import CocoImages
from perceptual_mae.transfer.detection.scores import CONFIDENT, Detections, agreement
from perceptual_mae.transfer.pictures import best_and_worst, framed, palette
from perceptual_mae.transfer.transforms import fitted
from perceptual_mae.visualization.image_grid import sheet

LARGEST: Size = (280, 320)
"""Into which each picture fits."""
LETTERS = 18


def detection_page(detections: Sequence[Detections], data: CocoImages, count: int) -> Image.Image:
    """Return the sheet of image, truth and detections with a score of at least 0.5, with each image's F-measure.

    Where there is none, the one with the highest score is drawn. Crowds are drawn without a name.
    """
    scored = {each.index: agreement(each, data.truth(each.index)) for each in detections}
    chosen = best_and_worst({index: score for index, score in scored.items() if score is not None}, count)
    by_index = {each.index: each for each in detections}
    colors = palette(len(data.classes))
    rows: dict[str, list[Tensor]] = {name: [] for name in ("image", "truth", "detections")}
    notes = []
    for what, index in chosen:
        image, truth = data[index].image.as_subclass(Tensor), data.truth(index)
        detected = by_index[index].decoded(data.images[index].size)
        shown = detected["scores"] >= min(
            CONFIDENT, float(detected["scores"].max()) if len(detected["scores"]) else 1.0
        )
        sure = {key: value[shown] for key, value in detected.items()}
        truth_names = [
            "crowd" if crowd else data.classes[label - 1]
            for label, crowd in zip(truth["labels"].tolist(), truth["iscrowd"].tolist(), strict=True)
        ]
        names = [
            f"{data.classes[label - 1][:LETTERS]} {100 * score:.0f}"
            for label, score in zip(sure["labels"].tolist(), sure["scores"].tolist(), strict=True)
        ]
        rows["image"].append(drawn(image, None, [], colors))
        rows["truth"].append(drawn(image, truth, truth_names, colors))
        rows["detections"].append(drawn(image, sure, names, colors))
        score = scored[index]
        notes.append(f"{what}\n{data.images[index].file_name[-20:]}\nF {100 * (score or 0.0):.0f} %")
    return sheet({name: torch.stack(views).float() / 255 for name, views in rows.items()}, notes)


def drawn(image: Tensor, objects: Target | None, names: Sequence[str], colors: Tensor) -> Tensor:
    """Return an image uint8 (3, H, W) with objects drawn on it, inside a white frame (3, *LARGEST)."""
    size = fitted((image.shape[-2], image.shape[-1]), LARGEST)
    scale = torch.tensor([size[1] / image.shape[-1], size[0] / image.shape[-2]]).repeat(2)
    picture = transforms.resize(image, list(size), antialias=True)
    if objects is not None and len(objects["boxes"]):
        chosen: Any = [tuple(colors[label - 1].tolist()) for label in objects["labels"].tolist()]
        masks = F.interpolate(objects["masks"][None].float(), size=size, mode="nearest")[0] > 0.5
        picture = draw_segmentation_masks(picture, masks, alpha=0.45, colors=chosen)
        boxes = objects["boxes"] * scale
        picture = draw_bounding_boxes(picture, boxes, labels=list(names), colors=chosen, label_colors="white")
    return framed(picture, LARGEST)
