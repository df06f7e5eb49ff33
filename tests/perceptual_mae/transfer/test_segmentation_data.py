"""Images and masks: layouts, numbers of classes there and back, and what is wrong in one line."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from halves import write_halves
from perceptual_mae import UserError
from perceptual_mae.transfer.segmentation.augmentation import SegmentationTransform
from perceptual_mae.transfer.segmentation.data import (
    CAMVID_CLASSES,
    IGNORED,
    SegmentationData,
    ade20k,
    camvid,
    image_mask_pairs,
)
from perceptual_mae.transfer.segmentation.scores import constant_floor


def write_pair(images: Path, masks: Path, name: str, mask: np.ndarray, size: tuple[int, int] | None = None) -> None:
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size or mask.shape[::-1], (9, 99, 199)).save(images / f"{name}.jpg")
    Image.fromarray(mask).save(masks / f"{name}.png")


def test_ade20ks_numbers_begin_with_one_and_nought_is_not_counted(tmp_path: Path) -> None:
    inner = tmp_path / "ADEChallengeData2016"
    mask = np.array([[0, 1], [150, 20]], dtype=np.uint8)
    write_pair(inner / "images/validation", inner / "annotations/validation", "ADE_val_1", mask)
    data = ade20k("val", root=str(tmp_path))
    assert (len(data.classes), data.classes[0]) == (150, "class 1")
    classes = data[0][1]
    assert classes.tolist() == [[IGNORED, 0], [149, 19]]
    assert data.to_file_ids(torch.tensor([[0, 149], [19, 3]])).tolist() == [[1, 150], [20, 4]]
    lines = [
        "Idx\tRatio\tTrain\tVal\tName",
        *(f"{number}\t0.1\t1\t1\tthing{number}, other" for number in range(1, 151)),
    ]
    (inner / "objectInfo150.txt").write_text("\n".join(lines))
    assert ade20k("val", root=str(inner)).classes[149] == "thing150"


def test_camvid_has_eleven_classes_and_the_twelfth_number_is_not_counted(tmp_path: Path) -> None:
    write_pair(tmp_path / "camvid/train", tmp_path / "camvid/trainannot", "a", np.array([[3, 11]], dtype=np.uint8))
    data = camvid("train", root=str(tmp_path))
    assert data.classes == CAMVID_CLASSES
    assert data[0][1].tolist() == [[3, IGNORED]]


def test_any_folder_of_pairs_may_begin_with_any_number(tmp_path: Path) -> None:
    write_halves(tmp_path, train=2)
    data = image_mask_pairs("train", root=str(tmp_path))
    assert data.classes == ("red", "green", "blue")
    image, mask = data[0]
    assert (tuple(image.shape), image.dtype, mask.dtype) == ((3, 40, 48), torch.uint8, torch.uint8)
    assert bool((mask[-2:] == IGNORED).all())
    assert bool((mask[:-2] < 3).all())
    write_pair(tmp_path / "val/images", tmp_path / "val/masks", "a", np.array([[7, 8, 0]], dtype=np.uint8))
    shifted = image_mask_pairs("val", root=str(tmp_path), classes=2, first=7, ignored=(0,))
    assert shifted[0][1].tolist() == [[0, 1, IGNORED]]
    assert shifted.to_file_ids(torch.tensor([0, 1])).tolist() == [7, 8]


@pytest.mark.parametrize(
    ("mask", "size", "message"),
    [
        (np.full((4, 6), 3, dtype=np.uint8), None, "holds the number 3, which is no class: those are 0 to 2"),
        (np.zeros((4, 6), dtype=np.uint8), (6, 5), "is 6 x 4 pixels, its image .*bad.jpg 6 x 5"),
        (
            np.zeros((4, 6, 3), dtype=np.uint8),
            (6, 4),
            "a mask must have one 8-bit channel of class numbers, not mode RGB",
        ),
    ],
)
def test_a_wrong_mask_is_named_in_one_line(
    mask: np.ndarray, size: tuple[int, int] | None, message: str, tmp_path: Path
) -> None:
    write_halves(tmp_path, train=1)
    write_pair(tmp_path / "train/images", tmp_path / "train/masks", "bad", mask, size)
    data = image_mask_pairs("train", root=str(tmp_path))
    with pytest.raises(Exception, match=rf"bad\.png: {message}") as caught:
        data[[path.stem for path, _ in data.pairs].index("bad")]
    assert len(str(caught.value).splitlines()) == 1


def test_headers_are_checked_before_anything_is_trained(tmp_path: Path) -> None:
    write_halves(tmp_path, train=2)
    image_mask_pairs("train", root=str(tmp_path)).check_headers()
    write_pair(tmp_path / "train/images", tmp_path / "train/masks", "bad", np.zeros((4, 6), dtype=np.uint8), (9, 9))
    (tmp_path / "train/images/00.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"00\.png: .* \(and 1 more\); correct or remove the file"):
        image_mask_pairs("train", root=str(tmp_path)).check_headers()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    write_halves(tmp_path, train=1)
    with pytest.raises(UserError, match=r"val/images: is no folder; give --root"):
        image_mask_pairs("val", root=str(tmp_path))
    (tmp_path / "train/masks/00.png").unlink()
    with pytest.raises(UserError, match=r"images/00\.png: has no mask .*masks/00\.png; add it"):
        image_mask_pairs("train", root=str(tmp_path))
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"has no classes\.txt; set data\.classes"):
        image_mask_pairs("train", root=str(tmp_path))
    with pytest.raises(UserError, match="holds neither images/ nor ADEChallengeData2016/images/"):
        ade20k("train", root=str(tmp_path))
    with pytest.raises(UserError, match=r"data\.ignored: 1 is a class, too"):
        image_mask_pairs("train", root=str(tmp_path), classes=2, ignored=(1,))


def test_a_training_crop_has_its_size_and_no_class_fills_it(tmp_path: Path) -> None:
    data = image_mask_pairs("train", root=str(write_halves(tmp_path, train=1)))
    transform = SegmentationTransform(crop=(32, 40), scale=(0.5, 2.0), max_class_share=0.75)
    shares = []
    for seed in range(20):
        image, mask = transform(data[0], torch.Generator().manual_seed(seed))
        assert (tuple(image.shape), tuple(mask.shape)) == ((3, 32, 40), (32, 40))
        counted = mask[mask != IGNORED]
        assert set(counted.tolist()) <= {0, 1, 2}
        shares.append(float(torch.bincount(counted.long()).max()) / len(counted))
    assert sum(share < 0.76 for share in shares) >= 15
    with pytest.raises(UserError, match=r"augment\.scale"):
        SegmentationTransform(scale=(2.0, 0.5))


@pytest.mark.data
def test_a_constant_road_scores_the_floor_on_camvids_test_masks(shared_data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(shared_data / "camvid_segmentation.zip") as members:
        members.extractall(tmp_path)
    sizes = {split: len(camvid(split, root=str(tmp_path))) for split in ("train", "val", "test")}
    assert sizes == {"train": 220, "val": 60, "test": 80}
    data: SegmentationData = camvid("test", root=str(tmp_path))
    pixels = torch.zeros(256, dtype=torch.int64)
    for index in range(len(data)):
        pixels += torch.bincount(data[index][1].flatten().long(), minlength=256)
    matrix = torch.zeros(11, 11, dtype=torch.int64)
    matrix[:, 3] = pixels[:11]
    floor = constant_floor(matrix)
    assert data.classes[floor["class"]] == "Road"
    assert (round(floor["aacc"], 3), round(floor["miou"], 4)) == (0.272, 0.0247)
