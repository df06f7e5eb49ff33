"""Average precision against hand-worked values, and detections in the pixels of the original images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from perceptual_mae.errors import UserError
from perceptual_mae.transfer.detection.dataset import CocoImages
from perceptual_mae.transfer.detection.scores import (
    Detections,
    agreement,
    average_precision,
    check_backend,
    coco_results,
    in_original,
)
from small_coco import write_coco

pytest.importorskip("pycocotools", reason="of the extra `transfer`")

SIDE = 100
A, B, STRAY = (10, 10, 20, 20), (60, 60, 20, 20), (35, 35, 10, 10)  # left, top, width, height
MOVED = (14, 10, 20, 20)  # by 4 of 20 pixels: an overlap of 2/3


def target(boxes: Sequence[Any], crowds: Sequence[Any] = ()) -> dict[str, Tensor]:
    every = [*boxes, *crowds]
    corners = torch.tensor([(left, top, left + width, top + height) for left, top, width, height in every])
    masks = torch.zeros(len(every), SIDE, SIDE, dtype=torch.bool)
    for mask, (left, top, width, height) in zip(masks, every, strict=True):
        mask[top : top + height, left : left + width] = True
    crowd = torch.tensor([0] * len(boxes) + [1] * len(crowds), dtype=torch.int64)
    areas = torch.tensor([float(width * height) for _, _, width, height in every])
    labels = torch.ones(len(every), dtype=torch.int64)
    boxes_ = corners.float().view(-1, 4)
    return {"boxes": boxes_, "labels": labels, "masks": masks, "iscrowd": crowd, "area": areas}


def detected(*boxes: tuple[Any, float]) -> dict[str, Tensor]:
    found = target([box for box, _ in boxes])
    scores = torch.tensor([score for _, score in boxes])
    return {"boxes": found["boxes"], "labels": found["labels"], "masks": found["masks"], "scores": scores}


GOLDENS = [
    ("a stray box between two right ones", [(A, 0.9), (STRAY, 0.8), (B, 0.7)], [A, B], [], (0.834983, 0.834983, None)),
    ("a box moved by a fifth", [(MOVED, 0.9)], [A], [], (0.4, 1.0, 0.0)),
    ("a duplicate after full recall", [(A, 0.9), (A, 0.8)], [A], [], (1.0, 1.0, 1.0)),
    ("a box in a crowd", [(STRAY, 0.95), (A, 0.9)], [A], [(30, 30, 20, 20)], (1.0, 1.0, 1.0)),
]


@pytest.mark.parametrize(
    ("found", "objects", "crowds", "expected"),
    [golden[1:] for golden in GOLDENS],
    ids=[golden[0] for golden in GOLDENS],
)
@pytest.mark.parametrize("backend", ["pycocotools", "faster_coco_eval"])
def test_average_precision_is_the_hand_worked_one(
    found: Any, objects: Any, crowds: Any, expected: Any, backend: Any
) -> None:
    if backend == "faster_coco_eval":
        pytest.importorskip("faster_coco_eval", reason="an option")
    scores, table = average_precision([(detected(*found), target(objects, crowds))], ("thing", "other"), backend)
    for kind in ("box", "mask"):
        ap, ap50, ap75 = expected
        assert scores[f"{kind}_ap"] == pytest.approx(ap, abs=2e-5)
        assert scores[f"{kind}_ap50"] == pytest.approx(ap50, abs=2e-5)
        if ap75 is not None:
            assert scores[f"{kind}_ap75"] == ap75
        assert table["thing"][f"{kind}_ap"] == scores[f"{kind}_ap"]
        assert table["other"][f"{kind}_ap"] is None
    assert table["thing"]["objects"] == len(objects)


def test_recall_counts_the_first_detections_of_an_image_alone() -> None:
    three = [(A, 0.9), (STRAY, 0.8), (B, 0.7)]
    scores, _ = average_precision([(detected(*three), target([A, B]))], ("thing",))
    assert (scores["box_ar1"], scores["box_ar10"]) == (0.5, 1.0)
    in_crowd, _ = average_precision([(detected((STRAY, 0.95), (A, 0.9)), target([A], [(30, 30, 20, 20)]))], ("thing",))
    assert (in_crowd["box_ar1"], in_crowd["box_ar10"]) == (0.0, 1.0)


def test_objects_are_counted_by_the_sizes_of_coco() -> None:
    scores, _ = average_precision([(detected((A, 0.9)), target([A]))], ("thing",))
    assert (scores["box_ap_small"], scores["box_ap_medium"], scores["box_ap_large"]) == (1.0, None, None)


def test_an_image_without_detections_scores_nothing() -> None:
    scores, _ = average_precision([(detected(), target([A, B]))], ("thing",))
    assert scores["box_ap"] == scores["mask_ap"] == 0


def raw(boxes: Any) -> dict[str, Tensor]:
    number = len(boxes)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.ones(number, dtype=torch.int64),
        "scores": torch.linspace(0.9, 0.6, number),
        "masks": torch.ones(number, 1, 28, 28),
    }


def test_detections_come_back_to_the_pixels_of_the_image_and_what_lies_in_the_padding_goes() -> None:
    """An image of 30 x 40 pixels was scaled to 60 x 80 of 80 x 80; the second box is in the padding."""
    detections = in_original(3, raw([[20.0, 10.0, 60.0, 70.0], [10.0, 62.0, 30.0, 78.0]]), (60, 80), (30, 40))
    assert detections.index == 3
    assert detections.boxes.tolist() == [[10, 5, 30, 30]]
    mask = detections.decoded((30, 40))["masks"][0]
    expected = torch.zeros(30, 40, dtype=torch.bool)
    expected[5:30, 10:30] = True
    assert (mask != expected).sum() <= 45  # of the border


def test_results_have_the_ids_of_the_file(tmp_path: Path) -> None:
    images = CocoImages(*write_coco(tmp_path))
    found = in_original(1, raw([[4.0, 6.0, 24.0, 14.0]]), (32, 48), (32, 48))
    (entry,) = coco_results([found], images)
    assert (entry["image_id"], entry["category_id"]) == (11, 2)
    assert entry["bbox"] == [4, 6, 20, 8]


def test_results_are_what_pycocotools_scores_alike(tmp_path: Path) -> None:
    """Independent of torchmetrics: the file of results, scored by COCOeval itself."""
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    folder, file = write_coco(tmp_path)
    images = CocoImages(folder, file)
    boxes = [[5.0, 6.0, 25.0, 15.0], [30.0, 2.0, 37.0, 20.0]]
    found = [in_original(index, raw(boxes), (32, 48), (32, 48)) for index in range(2)]
    pairs = [(each.decoded((32, 48)), images.truth(each.index)) for each in found]
    scores, _ = average_precision(pairs, images.classes)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        for kind, theirs in (("box", "bbox"), ("mask", "segm")):
            evaluation = COCOeval(truth, truth.loadRes(coco_results(found, images)), theirs)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            assert scores[f"{kind}_ap"] == pytest.approx(evaluation.stats[0], abs=1e-5)
            assert scores[f"{kind}_ap50"] == pytest.approx(evaluation.stats[1], abs=1e-5)
            assert scores[f"{kind}_ar100"] == pytest.approx(evaluation.stats[8], abs=1e-5)


def test_agreement_pairs_each_object_with_one_confident_box_of_its_class() -> None:
    truth = target([A, B], crowds=[STRAY])
    corners = target([A, A, B])["boxes"]
    ones = torch.ones(3, dtype=torch.int64)
    found = Detections(0, corners, ones, torch.tensor([0.9, 0.8, 0.3]), ())
    assert agreement(found, truth) == pytest.approx(2 * 1 / (2 + 2))
    other = Detections(0, corners, 2 * ones, torch.tensor([0.9, 0.8, 0.7]), ())
    assert agreement(other, truth) == 0
    assert agreement(other, target([], crowds=[STRAY])) is None


def test_a_way_of_scoring_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match="pip install faster-coco-eval, or choose pycocotools"):
        check_backend("faster_coco_eval")
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match=r"needs pycocotools and torchmetrics: pip install"):
        check_backend("pycocotools")
