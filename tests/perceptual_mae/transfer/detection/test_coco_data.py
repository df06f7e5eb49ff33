"""COCO's format: labels, crowds, masks, jitter and every mistake of a file."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from perceptual_mae.errors import UserError
from perceptual_mae.seeding import stream
from perceptual_mae.transfer.detection.batch import collate
from perceptual_mae.transfer.detection.dataset import (
    CocoImages,
    EvaluationTransform,
    TrainTransform,
    decode_mask,
)
from small_coco import annotation, content_of, rectangle, write_coco

pytest.importorskip("pycocotools", reason="of the extra `transfer`")


def test_ids_of_categories_become_labels_from_1_in_the_order_of_the_ids(tmp_path: Path) -> None:
    images = CocoImages(*write_coco(tmp_path))
    assert images.classes == ("wide", "tall")
    assert images.category_ids == (2, 7)
    assert images[0].labels.tolist() == [1, 2]
    assert images[0].boxes.tolist() == [[4, 6, 24, 14], [30, 2, 36, 26]]


def test_crowds_are_left_out_of_training_and_marked_for_scoring(tmp_path: Path) -> None:
    content = content_of()
    content["annotations"].append(annotation(9, 11, (20, 20, 4, 4), ignore=1))
    images = CocoImages(*write_coco(tmp_path, content))
    assert images[1].labels.tolist() == [1]
    truth = images.truth(1)
    assert truth["iscrowd"].tolist() == [0, 1, 1]
    assert truth["masks"][1].sum() == 32 * 8
    assert truth["masks"][1][:, 40:].all()
    assert truth["area"].tolist() == [160, 256, 16]


def test_polygons_and_both_kinds_of_run_lengths_give_the_same_mask() -> None:
    from pycocotools import mask

    expected = torch.zeros(32, 48, dtype=torch.uint8)
    expected[6:14, 4:24] = 1
    expected[20:24, 30:40] = 1
    polygons = [rectangle((4, 6, 20, 8)), rectangle((30, 20, 10, 4))]
    columns = expected.T.flatten().tolist()
    changes = [0, *(place for place in range(1, len(columns)) if columns[place] != columns[place - 1]), len(columns)]
    counts = [after - before for before, after in itertools.pairwise(changes)]
    packed = mask.encode(expected.numpy().astype("uint8", order="F"))
    compressed = {"size": [32, 48], "counts": packed["counts"].decode()}
    for segmentation in (polygons, {"size": [32, 48], "counts": counts}, compressed):
        assert decode_mask(segmentation, (32, 48)).equal(expected)


def test_images_without_an_object_are_left_out_where_that_is_asked(tmp_path: Path) -> None:
    content = content_of()
    content["annotations"] = [each for each in content["annotations"] if each["id"] in (1, 4)]
    place = write_coco(tmp_path, content)
    assert len(CocoImages(*place)) == 2
    assert [image.id for image in CocoImages(*place, with_empty=False).images] == [10]
    empty = CocoImages(*place)[1]
    assert (empty.boxes.shape, empty.masks.shape) == ((0, 4), (0, 32, 48))


def test_objects_follow_their_image_through_the_jitter(tmp_path: Path) -> None:
    """Objects are white: the mask covers what is white, and the box is the smallest around it."""
    content = content_of()
    content["annotations"] = content["annotations"][:1]
    sample = CocoImages(*write_coco(tmp_path, content))[0]
    counts = set()
    for number in range(40):
        transform = TrainTransform(64, scale=(0.5, 3.0), flip=0.5)
        prepared = transform(sample, stream("augment", 0, number))
        assert prepared.image.shape == (3, 64, 64)
        boxes, masks = prepared.target["boxes"], prepared.target["masks"]
        counts.add(len(boxes))
        white = prepared.image[0] > 148  # half way from 40 to 255
        if not len(boxes):
            assert white.sum() <= 64
            continue
        (left, top, right, bottom), mask = boxes[0].tolist(), masks[0].bool()
        assert 0 <= left < right <= 64
        assert 0 <= top < bottom <= 64
        border = mask.sum() ** 0.5 * 8
        assert (mask != white).sum() <= border
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        tight = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (boxes[0] - tight).abs().max() <= 1.5
    assert counts == {0, 1}


def test_a_box_that_leaves_the_crop_vanishes_with_its_label_and_mask(tmp_path: Path) -> None:
    sample = CocoImages(*write_coco(tmp_path))[0]
    transform = TrainTransform(16, scale=(4.0, 4.0), flip=0.0)
    counts = set()
    for number in range(30):
        target = transform(sample, stream("augment", 0, number)).target
        counts.add(len(target["boxes"]))
        assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])
        assert target["masks"].flatten(1).bool().any(1).all()
    assert {0, 1} <= counts


def test_for_scoring_an_image_is_fitted_and_padded_with_black(tmp_path: Path) -> None:
    sample = CocoImages(*write_coco(tmp_path))[0]
    prepared = EvaluationTransform(96)(sample)
    assert (prepared.size, prepared.original_size) == ((64, 96), (32, 48))
    assert prepared.image[:, 64:].eq(0).all()
    assert prepared.image[:, :64].gt(0).all()
    batch = collate([prepared, prepared], [(0, 3), (0, 4)])
    assert batch.indices.tolist() == [3, 4]
    assert batch.to("cpu").images.max() <= 1


def change(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def changed(content: dict[str, Any]) -> None:
        content["annotations"][0][key] = value

    return changed


def drop_category(content: dict[str, Any]) -> None:
    content["categories"] = [{"id": 7, "name": "tall"}]


def name_no_file(content: dict[str, Any]) -> None:
    content["images"][0]["file_name"] = "gone.png"


def no_size(content: dict[str, Any]) -> None:
    content["images"][0]["height"] = None


def same_id(content: dict[str, Any]) -> None:
    content["images"][1]["id"] = 10


def no_annotations(content: dict[str, Any]) -> None:
    del content["annotations"]


MISTAKES = [
    (change("bbox", [100, 6, 20, 8]), "annotation 1: (0.png) its bbox [100, 6, 20, 8] lies outside the image"),
    (change("bbox", [4, 6, -20, 8]), "annotation 1: (0.png) its bbox [4, 6, -20, 8] has a negative side"),
    (change("bbox", [4, 6, 20]), "annotation 1: (0.png) its bbox is [4, 6, 20]"),
    (change("bbox", [4, 6, float("nan"), 8]), "annotation 1: (0.png) its bbox is [4, 6, nan, 8]"),
    (change("category_id", 3), "annotation 1: (0.png) its category_id 3 is of no category"),
    (change("category_id", None), "annotation 1: (0.png) its category_id None is of no category"),
    (drop_category, "annotation 1: (0.png) its category_id 2 is of no category"),
    (change("image_id", 99), "annotation 1: its image_id 99 is of no image"),
    (change("segmentation", [[1, 2, 3, 4]]), "annotation 1: (0.png) its segmentation has a polygon of 4 numbers"),
    (change("segmentation", [[1, 2, 3, 4, 5, 6, 7]]), "annotation 1: (0.png) its segmentation has a polygon of 7"),
    (change("segmentation", [[1, 2, 3, 4, "a", 6]]), "annotation 1: (0.png) its segmentation has a polygon that is"),
    (change("segmentation", None), "annotation 1: (0.png) its segmentation is missing"),
    (
        change("segmentation", {"size": [32, 48], "counts": [5, 6]}),
        "annotation 1: (0.png) its segmentation has run lengths of 11 pixels, not 1536",
    ),
    (
        change("segmentation", {"size": [3, 4], "counts": [12]}),
        "annotation 1: (0.png) its segmentation has run lengths",
    ),
    (name_no_file, "image 10: "),
    (no_size, "image 10: (0.png) has height None and width 48"),
    (same_id, "two entries of images have the id 10"),
    (no_annotations, "has no list of annotations"),
]


@pytest.mark.parametrize(("wrong", "message"), MISTAKES, ids=[message[:60] for _, message in MISTAKES])
def test_a_mistake_in_the_file_is_one_line_that_names_it(wrong: Any, message: str, tmp_path: Path) -> None:
    images, file = write_coco(tmp_path)
    content = json.loads(file.read_text())
    wrong(content)
    file.write_text(json.dumps(content))
    with pytest.raises(UserError) as raised:
        CocoImages(images, file)
    first = str(raised.value).splitlines()[0]
    assert first.startswith(f"{file}: {message}")
    if wrong is name_no_file:
        assert len(str(raised.value).splitlines()) == 1  # not each of its annotations, too


def test_of_many_mistakes_three_are_named_and_the_others_counted(tmp_path: Path) -> None:
    images, file = write_coco(tmp_path)
    content = json.loads(file.read_text())
    for each in content["annotations"]:
        each["category_id"] = 5
    file.write_text(json.dumps(content))
    with pytest.raises(UserError) as raised:
        CocoImages(images, file)
    assert len(str(raised.value).splitlines()) == 4
    assert str(raised.value).endswith("and 1 more mistakes")


@pytest.mark.parametrize("text", ["", "{", "[]", "nothing"])
def test_a_file_that_is_no_json_of_annotations_is_named(text: str, tmp_path: Path) -> None:
    images, file = write_coco(tmp_path)
    file.write_text(text)
    with pytest.raises(UserError, match=str(file)):
        CocoImages(images, file)


def test_boxes_without_a_side_are_left_out_and_counted_and_others_cut_at_the_border(tmp_path: Path) -> None:
    content = content_of()
    content["annotations"][0] |= {"bbox": [4, 6, 20, 0]}
    content["annotations"][1] |= {"bbox": [30, -0.5, 6, 33]}
    images = CocoImages(*write_coco(tmp_path, content))
    assert images.degenerate == 1
    assert images[0].boxes.tolist() == [[30, 0, 36, 32]]


def test_an_image_of_another_size_than_the_file_says_is_named(tmp_path: Path) -> None:
    images, file = write_coco(tmp_path)
    content = json.loads(file.read_text())
    content["images"][0] |= {"width": 32, "height": 48}
    content["annotations"] = content["annotations"][2:]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"0\.png: has 48x32 pixels"):
        CocoImages(images, file)[0]


def test_a_compressed_string_of_run_lengths_that_is_none_is_named(tmp_path: Path) -> None:
    content = content_of()
    content["annotations"][0]["segmentation"] = {"size": [32, 48], "counts": "ZZZZ0"}
    images = CocoImages(*write_coco(tmp_path, content))
    with pytest.raises(UserError, match=r"image 10 \(0\.png\) has run lengths that cannot be decoded"):
        images[0]
