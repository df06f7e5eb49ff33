"""Detections in the pixels of the original images, and their average precision as COCO computes it.

Shapes: N detections of an image; H x W pixels of it, S pixels a side of what the detector was given.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import box_iou, clip_boxes_to_image

from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.finite import check_finite
from perceptual_mae.images import Size
from perceptual_mae.progress import OnProgress, no_progress
from perceptual_mae.transfer.detection.batch import Target, collate
from perceptual_mae.transfer.detection.dataset import REMEDY, CocoImages, EvaluationTransform, coco_masks
from perceptual_mae.transfer.detection.detector import Detector
from perceptual_mae.transfer.loading import own_share

Backend = Literal["pycocotools", "faster_coco_eval"]
SCORES = {
    "ap": "map",
    "ap50": "map_50",
    "ap75": "map_75",
    "ap_small": "map_small",
    "ap_medium": "map_medium",
    "ap_large": "map_large",
    "ar1": "mar_1",
    "ar10": "mar_10",
    "ar100": "mar_100",
}
"""Our names of COCO's twelve numbers, and torchmetrics'."""
KINDS = {"box": "bbox", "mask": "segm"}
CONFIDENT = 0.5
"""Score, and overlap, from which on a picture's detection counts as one."""


@dataclass(frozen=True)
class Detections:
    """What was detected in the image `index`: boxes (N, 4) in its pixels, labels, scores, and masks as run lengths."""

    index: int
    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: tuple[dict[str, Any], ...]

    def decoded(self, size: Size) -> Target:
        """Return boxes, labels, scores and masks, bool (N, H, W)."""
        mask = coco_masks()
        drawn = mask.decode(list(self.masks)) if self.masks else None  # (H, W, N)
        masks = torch.zeros(0, *size) if drawn is None else torch.from_numpy(drawn).permute(2, 0, 1)
        return {"boxes": self.boxes, "labels": self.labels, "scores": self.scores, "masks": masks.bool()}


@torch.no_grad()
def detect(
    detector: Detector,
    images: CocoImages,
    side: int,
    accelerator: Accelerator,
    *,
    batch_size: int,
    workers: int = 0,
    name: str = "detection",
    on_progress: OnProgress = no_progress,
) -> list[Detections]:
    """Return the detections in all images, in their order, on all processes, of which each takes its share."""
    detector.eval()
    own: list[Detections] = []
    options = {"batch_size": batch_size, "workers": workers}
    for batch in own_share(images, EvaluationTransform(side), collate, accelerator, name, on_progress, **options):
        with accelerator.autocast():
            outputs: Any = detector(batch.to(accelerator.device).images)
        for index, raw, size, original in zip(
            batch.indices.tolist(), outputs, batch.sizes, batch.original_sizes, strict=True
        ):
            own.append(in_original(index, raw, size, original))
    gathered: list[Detections] = gather_object(own) if accelerator.num_processes > 1 else own
    return sorted(gathered, key=lambda each: each.index)


def in_original(index: int, raw: Target, size: Size, original: Size) -> Detections:
    """Return a detector's output for an image that has `size` of its S x S pixels, in the image's own pixels."""
    mask = coco_masks()
    boxes = clip_boxes_to_image(check_finite(raw["boxes"].float(), "boxes"), size)
    scale = boxes.new_tensor([original[1] / size[1], original[0] / size[0]]).repeat(2)
    boxes = boxes * scale
    is_left = (boxes[:, 2:] > boxes[:, :2]).all(1)
    boxes = boxes[is_left].cpu()
    pasted = paste_masks_in_image(raw["masks"][is_left].float().cpu(), boxes, original)[:, 0] > CONFIDENT
    runs = [mask.encode(each.numpy().astype("uint8", order="F")) for each in pasted]
    return Detections(index, boxes, raw["labels"][is_left].cpu(), raw["scores"][is_left].float().cpu(), tuple(runs))


def check_backend(backend: Backend) -> None:
    """Refuse a way of scoring that is not installed, before anything is trained."""
    coco_masks()
    if not _is_installed("torchmetrics"):
        raise UserError(f"pmae detect needs pycocotools and torchmetrics: {REMEDY}")
    if backend != "pycocotools" and not _is_installed(backend):
        raise UserError(
            f"evaluation.backend: {backend} is not installed: pip install faster-coco-eval, or choose pycocotools"
        )


def average_precision(
    pairs: Iterable[tuple[Target, Target]], classes: Sequence[str], backend: Backend = "pycocotools"
) -> tuple[dict[str, float | None], dict[str, dict[str, float | None]]]:
    """Return COCO's twelve numbers in [0, 1] for boxes and for masks, and both APs of each class by its name.

    pairs: of detections and truth of each image. None: no object of that size, or class, is in the images.
    """
    from torchmetrics.detection import MeanAveragePrecision

    # One process has all pairs: others would wait for it, which do not compute.
    metric = MeanAveragePrecision(iou_type=("bbox", "segm"), class_metrics=True, backend=backend, sync_on_compute=False)
    objects = [0] * len(classes)
    for detections, truth in pairs:
        metric.update([detections], [{**truth, "masks": truth["masks"].bool()}])
        for label, is_crowd in zip(truth["labels"].tolist(), truth["iscrowd"].tolist(), strict=True):
            objects[label - 1] += not is_crowd
    result = metric.compute()
    scores = {
        f"{kind}_{ours}": _value(result[f"{theirs}_{key}"])
        for kind, theirs in KINDS.items()
        for ours, key in SCORES.items()
    }
    places = {label: place for place, label in enumerate(result["classes"].view(-1).tolist())}
    table: dict[str, dict[str, float | None]] = {}
    for label, name in enumerate(classes, start=1):
        table[name] = {"objects": objects[label - 1]}
        for kind, theirs in KINDS.items():
            values = result[f"{theirs}_map_per_class"].view(-1)
            table[name][f"{kind}_ap"] = _value(values[places[label]]) if label in places else None
    return scores, table


def coco_results(detections: Sequence[Detections], images: CocoImages) -> list[dict[str, Any]]:
    """Return detections in COCO's format of results, with the file's own ids of images and categories."""
    entries = []
    for each in detections:
        image = images.images[each.index]
        for box, label, score, runs in zip(
            each.boxes.tolist(), each.labels.tolist(), each.scores.tolist(), each.masks, strict=True
        ):
            left, top, right, bottom = box
            entries.append(
                {
                    "image_id": image.id,
                    "category_id": images.category_ids[label - 1],
                    "bbox": [round(side, 2) for side in (left, top, right - left, bottom - top)],
                    "score": round(score, 5),
                    "segmentation": {"size": list(runs["size"]), "counts": runs["counts"].decode()},
                }
            )
    return entries


def agreement(detections: Detections, truth: Target) -> float | None:
    """Return the F-measure in [0, 1] of an image's confident boxes, for the choice of pictures; None without objects.

    A box counts where it overlaps an object of its class by half, and none with a higher score does.
    """
    is_object = truth["iscrowd"] == 0
    confident = detections.scores >= CONFIDENT
    total = int(is_object.sum()) + int(confident.sum())
    if not is_object.any():
        return None
    overlap = box_iou(detections.boxes[confident], truth["boxes"][is_object])
    overlap *= detections.labels[confident][:, None] == truth["labels"][is_object]
    hits = 0
    for row in range(len(overlap)):  # highest score first, as they come
        best = int(overlap[row].argmax())
        if overlap[row, best] >= CONFIDENT:
            hits += 1
            overlap[:, best] = 0
    return 2 * hits / total


def _is_installed(package: str) -> bool:
    """Return whether a package can be imported, without the seconds that it takes."""
    try:
        return find_spec(package) is not None
    except ValueError:
        return False


def _value(score: Tensor) -> float | None:
    return None if score < 0 else round(float(score), 5)
