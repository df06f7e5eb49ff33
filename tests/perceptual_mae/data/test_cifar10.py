import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perceptual_mae.data.cifar10 import CLASSES, Cifar10
from perceptual_mae.errors import UserError

PER_BATCH = 20


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The same 100 + 20 random images in torchvision's layout and as class folders."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)  # these have other MD5 sums
    layout, tree = tmp_path / "layout", tmp_path / "tree"
    (layout / "cifar-10-batches-py").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        pixels = random.integers(0, 256, (PER_BATCH, 3, 32, 32), dtype=np.uint8)
        labels = [i % 10 for i in range(PER_BATCH)]
        content = {"data": pixels.reshape(PER_BATCH, -1), "labels": labels}
        (layout / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(content))
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            folder = tree / ("test" if name == "test_batch" else "train") / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{name}_{i:02}.png")
    meta = pickle.dumps({"label_names": list(CLASSES)})
    (layout / "cifar-10-batches-py" / "batches.meta").write_bytes(meta)
    return layout, tree


def content(dataset: Cifar10) -> list[tuple[bytes, int]]:
    return [(bytes(dataset[i][0].numpy()), dataset[i][1]) for i in range(len(dataset))]


@pytest.mark.parametrize("split", ["train", "test"])
def test_class_folders_hold_what_torchvisions_layout_holds(roots: tuple[Path, Path], split: str) -> None:
    layout, tree = (Cifar10(split, root=str(root)) for root in roots)
    assert len(layout) == len(tree) == (100 if split == "train" else 20)
    assert sorted(content(layout)) == sorted(content(tree))
    assert layout.classes == tree.classes == CLASSES
    image, _ = layout[0]
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.uint8


def test_torchvisions_layout_keeps_its_order(roots: tuple[Path, Path]) -> None:
    from torchvision.datasets import CIFAR10

    reference, ours = CIFAR10(str(roots[0]), train=False), Cifar10("test", root=str(roots[0]))
    for i in range(20):
        assert np.array_equal(np.array(reference[i][0]), ours[i][0].permute(1, 2, 0).numpy())
        assert reference[i][1] == ours[i][1]


@pytest.mark.parametrize("which", [0, 1])
def test_validation_images_are_taken_from_train_alone(roots: tuple[Path, Path], which: int) -> None:
    root = str(roots[which])
    train, val = (Cifar10(split, root=root, val_images=30) for split in ("train", "val"))
    assert (len(train), len(val)) == (70, 30)
    assert sorted(content(train) + content(val)) == sorted(content(Cifar10("train", root=root)))
    assert len({label for _, label in content(val)}) >= 7  # not the last classes of the alphabet
    assert content(val) == content(Cifar10("val", root=root, val_images=30))
    assert len(Cifar10("test", root=root, val_images=30)) == 20


def test_images_of_a_tree_have_file_names_and_those_of_the_layout_have_none(roots: tuple[Path, Path]) -> None:
    layout, tree = (Cifar10("test", root=str(root)) for root in roots)
    assert layout.file_name(0) is None
    assert sorted(tree.file_name(index).rpartition("/")[2] for index in range(20)) == [
        f"test_batch_{index:02}.png" for index in range(20)
    ]
    assert tree.file_name(0).startswith("airplane/")


def test_the_batches_folder_itself_and_a_folder_above_the_tree_will_do(roots: tuple[Path, Path]) -> None:
    layout, tree = roots
    assert len(Cifar10("test", root=str(layout / "cifar-10-batches-py"))) == 20
    tree.rename(tree.with_name("cifar10"))
    assert len(Cifar10("test", root=str(tree.parent))) == 20


def test_there_is_no_validation_split_without_images_for_it(roots: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=r"set data\.val_images"):
        Cifar10("val", root=str(roots[0]))
    with pytest.raises(UserError, match=r"data\.val_images is 100"):
        Cifar10("train", root=str(roots[0]), val_images=100)


def test_roots_without_the_images_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "damaged" / "cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for label in ("cat", "dog"):
        (tmp_path / "other" / "train" / label).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "other" / "train" / label / "a.png")
    for name, words in {
        "missing": r"not a folder .* data\.download=true",
        "damaged": "incomplete or damaged",
        "empty": "no CIFAR-10 in",
        "other": "image_folder",
    }.items():
        with pytest.raises(UserError, match=words) as caught:
            Cifar10("train", root=str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_a_failed_download_is_the_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_network)
    with pytest.raises(UserError, match=r"could not be downloaded \(no route to host\)"):
        Cifar10("train", root=str(tmp_path / "new"), download=True)
