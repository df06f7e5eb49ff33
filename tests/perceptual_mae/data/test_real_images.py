"""The data sets on real images: needs ../shared/data beside the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from perceptual_mae.data.cifar10 import Cifar10
from perceptual_mae.data.image_folder import ImageFolder
from perceptual_mae.data.loading import EpochPlan, TrainLoader, evaluation_batches
from perceptual_mae.data.transforms import EvaluationTransform, TrainTransform

pytestmark = [pytest.mark.data, pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")]


def unpacked(archive: Path, folder: Path) -> Path:
    with zipfile.ZipFile(archive) as members:
        members.extractall(folder)
    return folder


@pytest.mark.exhaustive
def test_cifar10_is_complete_and_the_same_in_both_layouts(shared_data: Path, tmp_path: Path) -> None:
    script = str(shared_data / "unpack_cifar10.py")
    subprocess.run([sys.executable, script, str(tmp_path), "--folders"], check=True, capture_output=True)
    layout = Cifar10("test", root=str(tmp_path))
    (tmp_path / "cifar-10-batches-py").rename(tmp_path / "elsewhere")
    tree = Cifar10("test", root=str(tmp_path))
    assert len(layout) == len(tree) == 10_000
    both = [sorted((label, bytes(image.numpy())) for image, label in map(source.__getitem__, range(10_000)))
            for source in (layout, tree)]  # fmt: skip
    assert both[0] == both[1]
    (tmp_path / "elsewhere").rename(tmp_path / "cifar-10-batches-py")
    train, val = (Cifar10(split, root=str(tmp_path), val_images=5000) for split in ("train", "val"))
    assert (len(train), len(val)) == (45_000, 5_000)
    pixels = torch.stack([train[i][0] for i in range(0, 45_000, 9)]).float() / 255
    expected = torch.tensor([0.4914, 0.4822, 0.4465])  # the widely published channel means of CIFAR-10
    torch.testing.assert_close(pixels.mean((0, 2, 3)), expected, atol=0.01, rtol=0)


def test_a_plain_folder_of_photographs_is_read_and_split(shared_data: Path, tmp_path: Path) -> None:
    root = str(unpacked(shared_data / "imagenet_photos.zip", tmp_path))
    train, val, test = (ImageFolder(split, root=root) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (468, 26, 26)
    assert train.classes == ()
    loader = TrainLoader(train, TrainTransform((224, 224)), EpochPlan(468, 64, seed=0), seed=0, workers=2)
    (batch,) = next(loader.epoch(1))
    assert batch.images.shape == (64, 3, 224, 224)
    assert batch.images.float().std() > 40
    batches = list(evaluation_batches(val, EvaluationTransform((224, 224), 256), batch_size=16))
    assert torch.equal(batches[0].images[0], val[0][0][:, 16:240, 16:240])  # 256 px already: cropped, not resized
    loader.close()


def test_class_folders_of_paintings_give_the_same_classes_in_train_and_test(shared_data: Path, tmp_path: Path) -> None:
    root = str(unpacked(shared_data / "wikiart_paintings.zip", tmp_path) / "wikiart_paintings")
    train, test = ImageFolder("train", root=root), ImageFolder("test", root=root)
    assert (len(train), len(test)) == (364, 91)
    assert train.classes == test.classes
    assert len(train.classes) == 7
    assert [test[i][1] for i in range(91)] == sorted(list(range(7)) * 13)
    (batch,) = next(
        iter(TrainLoader(train, TrainTransform((96, 64)), EpochPlan(364, 8, seed=0), seed=0, workers=0).epoch(1))
    )
    assert batch.images.shape == (8, 3, 96, 64)
