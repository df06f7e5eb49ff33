from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perceptual_mae.data.stl10 import CLASSES, Stl10
from perceptual_mae.errors import UserError

COUNTS = {"unlabeled": 12, "train": 10, "test": 10}


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """torchvision's layout with a few random images."""
    folder = tmp_path / "layout" / "stl10_binary"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in COUNTS.items():
        random.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8).tofile(folder / f"{part}_X.bin")
        if part != "unlabeled":
            (np.arange(count, dtype=np.uint8) % 10 + 1).tofile(folder / f"{part}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(CLASSES))
    (folder / "fold_indices.txt").write_text("0")
    return folder.parent


@pytest.fixture
def tree(tmp_path: Path, layout: Path) -> Path:
    """The same images as class folders."""
    root = tmp_path / "tree"
    for part, split, labelled in (("unlabeled", "train", False), ("train", "train", True), ("test", "test", False)):
        dataset = Stl10(split, root=str(layout), labelled=labelled)
        for i in range(len(dataset)):
            image, label = dataset[i]
            folder = root / part / (CLASSES[label] if label >= 0 else ".")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:02}.png")
    return root


def content(dataset: Stl10) -> list[tuple[bytes, int]]:
    return [(bytes(dataset[i][0].numpy()), dataset[i][1]) for i in range(len(dataset))]


@pytest.mark.parametrize(
    ("split", "labelled", "part"), [("train", False, "unlabeled"), ("train", True, "train"), ("test", False, "test")]
)
def test_images_and_labels_are_those_torchvision_reads(
    layout: Path, monkeypatch: pytest.MonkeyPatch, split: str, labelled: bool, part: str
) -> None:
    from torchvision.datasets import STL10

    monkeypatch.setattr("torchvision.datasets.stl10.check_integrity", lambda *_: True)  # these have other MD5 sums
    reference, ours = STL10(str(layout), split=part), Stl10(split, root=str(layout), labelled=labelled)
    assert len(reference) == len(ours) == COUNTS[part]
    for i in range(len(ours)):
        assert np.array_equal(np.array(reference[i][0]), ours[i][0].permute(1, 2, 0).numpy())
        assert reference[i][1] == ours[i][1]
    assert ours.classes == (() if part == "unlabeled" else CLASSES)


@pytest.mark.parametrize(("split", "labelled"), [("train", False), ("train", True), ("test", False)])
def test_class_folders_hold_what_torchvisions_layout_holds(
    layout: Path, tree: Path, split: str, labelled: bool
) -> None:
    ours = [Stl10(split, root=str(root), labelled=labelled) for root in (layout, tree)]
    assert sorted(content(ours[0])) == sorted(content(ours[1]))
    assert ours[0].classes == ours[1].classes


def test_validation_images_are_taken_from_the_part_that_is_trained_on(layout: Path) -> None:
    train, val = (Stl10(split, root=str(layout), val_images=4) for split in ("train", "val"))
    assert (len(train), len(val)) == (8, 4)
    assert sorted(content(train) + content(val)) == sorted(content(Stl10("train", root=str(layout))))
    with pytest.raises(UserError, match=r"set data\.val_images"):
        Stl10("val", root=str(layout))


def test_roots_without_the_images_are_refused_in_one_line(tmp_path: Path, layout: Path) -> None:
    (tmp_path / "empty").mkdir()
    with (layout / "stl10_binary" / "test_X.bin").open("ab") as file:
        file.write(b"x")
    (layout / "stl10_binary" / "train_y.bin").unlink()
    for root, split, words in (
        (tmp_path / "missing", "train", "not a folder"),
        (tmp_path / "empty", "train", "no unlabeled part"),
        (layout, "test", "damaged"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            Stl10(split, root=str(root))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"train_y\.bin is missing"):
        Stl10("train", root=str(layout), labelled=True)
