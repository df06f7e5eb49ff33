import logging
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from perceptual_mae.data.decoding import UnreadableImageError
from perceptual_mae.data.image_folder import ImageFolder
from perceptual_mae.data.image_tree import list_images
from perceptual_mae.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


def put(root: Path, *names: str) -> Path:
    """Write a 4x4 image, each of another colour, under each name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), tuple(os.urandom(3))).save(path)
    return root


def paths(folder: ImageFolder) -> list[str]:
    """The files of a split by name, below the folder that its tree starts from."""
    return [folder.file_name(index) for index in range(len(folder))]


def test_class_folders_give_labels_in_sorted_order(tmp_path: Path) -> None:
    root = put(tmp_path, "train/dog/2.png", "train/dog/1.png", "train/cat/x/9.png", "train/Bird/5.png")
    folder = ImageFolder("train", root=str(root))
    assert folder.classes == ("Bird", "cat", "dog")
    assert paths(folder) == ["Bird/5.png", "cat/x/9.png", "dog/1.png", "dog/2.png"]
    assert [folder[i][1] for i in range(4)] == [0, 1, 2, 2]
    assert folder[0][0].shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("training", "valid", "testing"), ("Train", "Validation", "TEST")],
)
def test_splits_are_found_by_their_usual_names(tmp_path: Path, train: str, val: str, test: str) -> None:
    root = put(tmp_path, f"{train}/1.png", f"{train}/2.png", f"{val}/3.png", f"{test}/4.png", f"{test}/5.png")
    names = {split: paths(ImageFolder(split, root=str(root))) for split in ("train", "val", "test")}
    assert names == {"train": ["1.png", "2.png"], "val": ["3.png"], "test": ["4.png", "5.png"]}


def test_given_folders_are_used_and_never_trained_on(tmp_path: Path) -> None:
    root = put(tmp_path / "all", "a/1.png", "a/2.png", "b/3.png", "held/a/4.png", "held/b/5.png")
    put(tmp_path / "elsewhere", "6.png")
    options = {"root": str(root), "val": "held", "test": str(tmp_path / "elsewhere")}
    train, val, test = (ImageFolder(split, **options) for split in ("train", "val", "test"))
    assert paths(train) == ["a/1.png", "a/2.png", "b/3.png"]
    assert paths(val) == ["a/4.png", "b/5.png"]
    assert paths(test) == ["6.png"]
    assert train.classes == val.classes == ("a", "b")
    assert [val[i][1] for i in range(2)] == [0, 1]
    assert test[0][1] == -1
    assert paths(ImageFolder("test", root=str(root), val="held", test="held")) == paths(val)


def test_labels_of_other_splits_are_those_of_train(tmp_path: Path) -> None:
    root = put(tmp_path, "train/a/1.png", "train/b/2.png", "train/c/3.png", "test/c/4.png", "test/b/5.png")
    test = ImageFolder("test", root=str(root))
    assert [test[i][1] for i in range(2)] == [1, 2]
    put(tmp_path, "test/unknown/6.png")
    with pytest.raises(UserError, match="classes that the training images lack: unknown"):
        ImageFolder("test", root=str(root))


def test_a_plain_folder_works_out_of_the_box_with_a_share_held_out(tmp_path: Path) -> None:
    root = put(tmp_path, *(f"{i % 3}/{i:03}.jpg" for i in range(59)), "top.png")
    splits = {split: ImageFolder(split, root=str(root)) for split in ("train", "val", "test")}
    assert {split: len(folder) for split, folder in splits.items()} == {"train": 54, "val": 3, "test": 3}
    assert sorted(path for folder in splits.values() for path in paths(folder)) == sorted(list_images(root))
    assert all(folder.classes == () and folder[0][1] == -1 for folder in splits.values())
    assert paths(ImageFolder("val", root=str(root))) == paths(splits["val"])
    assert paths(ImageFolder("val", root=str(root), seed=1)) != paths(splits["val"])


def test_the_share_held_out_can_be_set(tmp_path: Path) -> None:
    root = str(put(tmp_path, *(f"{i:02}.png" for i in range(20))))
    assert [len(ImageFolder(split, root=root, holdout=0.2)) for split in ("train", "val", "test")] == [12, 4, 4]
    assert len(ImageFolder("train", root=root, holdout=0)) == 20
    with pytest.raises(UserError, match="no val folder"):
        ImageFolder("val", root=root, holdout=0)
    with pytest.raises(UserError, match=r"data\.holdout is 0\.5"):
        ImageFolder("val", root=root, holdout=0.5)


def test_where_there_are_split_folders_nothing_is_held_out_unasked(tmp_path: Path) -> None:
    root = str(put(tmp_path, *(f"train/{i}.png" for i in range(10)), "test/1.png"))
    assert len(ImageFolder("train", root=root)) == 10
    with pytest.raises(UserError, match=r"name one with data\.val, or set data\.holdout"):
        ImageFolder("val", root=root)
    assert [len(ImageFolder(split, root=root, holdout=0.2)) for split in ("train", "val", "test")] == [8, 2, 1]


def painted(tmp_path: Path) -> str:
    """Three classes of 40, 20 and 7 images, no split folder."""
    counts = {"baroque": 40, "cubism": 20, "fauvism": 7}
    return str(put(tmp_path, *(f"{name}/{i:02}.png" for name, count in counts.items() for i in range(count))))


@pytest.mark.parametrize(
    ("fractions", "sizes"),
    [((0.7, 0.15, 0.15), (47, 10, 10)), ((0.8, 0.1, 0.1), (53, 7, 7)), ((0.5, 0.5, 0), (34, 33))],
)
def test_fractions_split_every_class_alike_and_use_every_image_once(
    tmp_path: Path, fractions: tuple[float, float, float], sizes: tuple[int, ...]
) -> None:
    root = painted(tmp_path)
    given = [split for split, share in zip(("train", "val", "test"), fractions, strict=True) if share]
    splits = {split: ImageFolder(split, root=root, split_fractions=fractions) for split in given}
    names = {split: paths(folder) for split, folder in splits.items()}
    assert tuple(len(part) for part in names.values()) == sizes
    assert sorted(name for part in names.values() for name in part) == list_images(tmp_path)
    for share, (split, part) in zip(fractions, names.items(), strict=False):
        for label, (name, count) in enumerate({"baroque": 40, "cubism": 20, "fauvism": 7}.items()):
            own = [path for path in part if path.startswith(name)]
            assert abs(len(own) - share * count) < 1.5
            assert {splits[split].label(part.index(path)) for path in own} <= {label}
        assert splits[split].classes == ("baroque", "cubism", "fauvism")


def test_fractions_give_the_same_split_wherever_it_is_drawn_and_another_for_another_seed(tmp_path: Path) -> None:
    root = painted(tmp_path)
    options = {"root": root, "split_fractions": (0.8, 0.1, 0.1)}
    written_down = [
        "baroque/06.png",
        "baroque/12.png",
        "baroque/27.png",
        "baroque/39.png",
        "cubism/03.png",
        "cubism/18.png",
        "fauvism/01.png",
    ]
    assert paths(ImageFolder("test", **options)) == written_down  # on the machine that drew it first
    assert paths(ImageFolder("test", **options)) != paths(ImageFolder("test", **options, seed=1))
    assert paths(ImageFolder("train", **options)) != paths(ImageFolder("train", **options, seed=1))


def test_fractions_of_a_flat_folder_are_shares_of_all_images(tmp_path: Path) -> None:
    root = str(put(tmp_path, *(f"{i:02}.png" for i in range(20))))
    sizes = [len(ImageFolder(split, root=root, split_fractions=(0.8, 0.1, 0.1))) for split in ("train", "val", "test")]
    assert sizes == [16, 2, 2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split_fractions": (0.8, 0.1, 0.2)}, r"split_fractions is \[0\.8, 0\.1, 0\.2\]; .* add up to 1"),
        ({"split_fractions": (0.0, 0.5, 0.5)}, "train above 0"),
        ({"split_fractions": (1.2, -0.1, -0.1)}, "add up to 1"),
        ({"split_fractions": (0.8, 0.1, 0.1), "holdout": 0.1}, "both hold out images"),
        ({"split_fractions": (0.8, 0.1, 0.1), "val": "a"}, "is split by its folders a"),
        ({"split_fractions": (0.5, 0.5, 0.0)}, "leaves no test image of 4"),
    ],
)
def test_fractions_that_cannot_be_are_refused_in_one_line(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    root = str(put(tmp_path, "a/1.png", "a/2.png", "b/3.png", "b/4.png"))
    with pytest.raises(UserError, match=words) as caught:
        ImageFolder("test", root=root, **options)
    assert "\n" not in str(caught.value)


def test_fractions_are_not_laid_over_split_folders(tmp_path: Path) -> None:
    root = str(put(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png"))
    with pytest.raises(UserError, match=r"is split by its folders train, test; set it to null, or data\.root to"):
        ImageFolder("train", root=root, split_fractions=(0.8, 0.1, 0.1))


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "deep/1.png", "2.png")
    root = put(tmp_path / "root", "3.png", "sub/4.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "file.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (root / "sub" / "up").symlink_to(root)  # a loop
    (root / "sub" / "self").symlink_to(root / "sub" / "self")  # leads to itself
    (tmp_path / "elsewhere" / "back").symlink_to(root / "sub")  # the same folder by another way
    names = list_images(root)
    assert names == ["3.png", "file.png", "linked/2.png", "linked/back/4.png", "linked/deep/1.png"]


def test_only_visible_image_files_count(tmp_path: Path) -> None:
    root = put(tmp_path, "a.PNG", "b.jpeg", ".hidden.png", ".cache/c.png", "d.webp")
    (root / "notes.txt").write_text("no image")
    (root / "broken.png").symlink_to(root / "nowhere.png")
    assert list_images(root) == ["a.PNG", "b.jpeg", "broken.png", "d.webp"]


def test_folders_next_to_train_that_are_not_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = put(tmp_path, "train/1.png", "truck/2.png", "ship/3.png", "test/4.png")
    with caplog.at_level(logging.WARNING):
        ImageFolder("train", root=str(root))
    assert "not read: ship, truck" in caplog.text


def test_roots_without_images_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    put(tmp_path / "one", "1.png")
    for options, words in (
        ({"root": str(tmp_path / "missing")}, "not a folder that can be reached"),
        ({"root": str(tmp_path / "empty")}, "no image below"),
        ({"root": str(tmp_path / "one")}, "too few to hold some out"),
        ({"root": str(tmp_path / "one"), "val": "held"}, r"data\.val: .* is not a folder"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            ImageFolder("train", **options)
        assert "\n" not in str(caught.value)


def test_a_folder_without_images_is_no_class(tmp_path: Path) -> None:
    root = put(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png")
    for name in ("train/__MACOSX", "train/aa/deep/er", "test/__MACOSX"):
        (root / name).mkdir(parents=True)
    (root / "train/__MACOSX/._1.png").write_text("resource fork")
    train, test = (ImageFolder(split, root=str(root)) for split in ("train", "test"))
    assert train.classes == test.classes == ("a", "b")
    assert [train[index][1] for index in range(2)] == [test[index][1] for index in range(2)] == [0, 1]


def test_a_class_without_test_images_stays_a_class(tmp_path: Path) -> None:
    root = put(tmp_path, "train/a/1.png", "train/b/2.png", "train/c/3.png", "test/a/4.png", "test/c/5.png")
    (root / "test/b").mkdir()
    test = ImageFolder("test", root=str(root))
    assert test.classes == ("a", "b", "c")
    assert [test[index][1] for index in range(2)] == [0, 2]


def test_a_picture_next_to_class_folders_is_named(tmp_path: Path) -> None:
    root = put(tmp_path, "train/a/1.png", "train/b/2.png")
    assert ImageFolder("train", root=str(root)).stray_image is None
    put(root, "train/cover.png")
    train = ImageFolder("train", root=str(root))
    assert (train.classes, train.stray_image) == ((), root / "train" / "cover.png")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_pixels": 0}, r"data\.max_pixels is 0; give at least 1"),
        ({"max_unreadable": 1.0}, r"data\.max_unreadable is 1\.0; it is a share of the images, in \[0, 1\)"),
        ({"max_unreadable": -0.1}, r"data\.max_unreadable is -0\.1"),
    ],
)
def test_limits_that_cannot_be_are_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ImageFolder("train", root=str(put(tmp_path, "1.png")), **options)


def test_an_image_above_the_limit_of_pixels_is_unreadable(tmp_path: Path) -> None:
    folder = ImageFolder("train", root=str(put(tmp_path, "1.png")), holdout=0, max_pixels=15)
    with pytest.raises(UnreadableImageError, match="4 x 4 pixels are more than 15"):
        folder[0]
