"""JPEGs decoded by the training process are those that workers decode: the same batches, the same files left out."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import debug_config
from perceptual_mae import pretrain
from perceptual_mae.config.parsing import load_config
from perceptual_mae.data import decoding, device_decoding
from perceptual_mae.data.batch import Batch
from perceptual_mae.data.dataset import ImageDataset
from perceptual_mae.data.decoding import read_jpeg
from perceptual_mae.data.image_folder import ImageFolder
from perceptual_mae.data.loading import EpochPlan, TrainLoader
from perceptual_mae.data.orientation import turn_upright
from perceptual_mae.data.shapes import Shapes
from perceptual_mae.data.shard_writing import write_shards
from perceptual_mae.data.shards import Shards
from perceptual_mae.data.transforms import TrainTransform
from perceptual_mae.data.unreadable import TooManyUnreadableError
from perceptual_mae.errors import UserError
from perceptual_mae.run.run import Run

CPU = torch.device("cpu")
TRANSFORM = TrainTransform((16, 16), color_jitter=0.4, grayscale=0.3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of JPEGs: grey, CMYK, progressive and turned ones, two that break off, and other formats."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for number in range(16):
        place = folder / "ab"[number % 2] / f"{number:02}.jpg"
        place.parent.mkdir(exist_ok=True)
        size = (40 + number, 52 - number)
        exif = Image.Exif()
        exif[274] = number % 9  # the orientation, 1 to 8, and 0, which means nothing
        if number == 9:
            pixels = rng.integers(0, 256, size, dtype=np.uint8)
        else:
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).convert("CMYK") if number == 10 else Image.fromarray(pixels)
        image.save(place, exif=exif, progressive=number == 11)
    Image.fromarray(rng.integers(0, 256, (33, 44, 3), dtype=np.uint8)).save(folder / "b/20.png")
    for name in ("12", "13"):
        cut = next(folder.glob(f"*/{name}.jpg"))
        cut.write_bytes(cut.read_bytes()[: -len(cut.read_bytes()) // 2])
    (folder / "a/empty.jpg").touch()
    return folder


def folder_of(root: Path) -> ImageFolder:
    return ImageFolder("train", root=str(root), holdout=0, max_unreadable=0.3)


def batches_of(dataset: ImageDataset, decode_on: torch.device | None, workers: int = 0) -> list[Batch]:
    """Every micro-batch of two epochs."""
    plan = EpochPlan(len(dataset), 6, seed=3)
    loader = TrainLoader(dataset, TRANSFORM, plan, seed=3, workers=workers, decode_on=decode_on)
    read = [batch for epoch in (1, 2) for step in loader.epoch(epoch) for batch in step]
    loader.close()
    return read


def as_tensor(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def same(one: Batch, other: Batch) -> bool:
    keys = ("images", "labels", "indices", "passes")
    return all(torch.equal(getattr(one, key), getattr(other, key)) for key in keys) and (
        one.unreadable == other.unreadable
    )


@pytest.fixture
def decoded_here() -> Iterator[mock.Mock]:
    """The function that decodes on the device, as this process calls it."""
    with mock.patch.object(device_decoding, "decode_jpegs", wraps=decoding.decode_jpegs) as spy:
        yield spy


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_that_workers_decode(root: Path, workers: int, decoded_here: mock.Mock) -> None:
    expected = batches_of(folder_of(root), None)
    decoded_here.assert_not_called()
    decoded = batches_of(folder_of(root), CPU, workers)
    assert decoded_here.call_count == len(decoded)
    assert len(expected) == len(decoded) > 0
    assert any(batch.unreadable for batch in expected)
    assert all(map(same, expected, decoded))


def test_files_that_break_off_are_replaced_and_named_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        batches_of(folder_of(root), CPU)
    named = [record.getMessage() for record in caplog.records if "cannot be read" in record.getMessage()]
    assert sorted(Path(line.split(": ")[1]).name for line in named) == ["12.jpg", "13.jpg", "empty.jpg"]


def test_images_in_shards_are_decoded_too(root: Path, tmp_path: Path) -> None:
    whole = shutil.copytree(root, tmp_path / "whole", ignore=shutil.ignore_patterns("12.jpg", "13.jpg", "empty.jpg"))
    write_shards(whole, tmp_path / "shards")
    shards = [Shards("train", root=str(tmp_path / "shards"), holdout=0) for _ in range(2)]
    assert all(map(same, batches_of(shards[0], None), batches_of(shards[1], CPU)))


def test_a_jpeg_is_handed_over_with_its_orientation_and_all_else_is_left_to_pillow(root: Path) -> None:
    left = []
    for path in sorted(root.rglob("*.*g")):
        try:
            expected = decoding.read_image(path)
        except decoding.UnreadableImageError:
            continue
        content, orientation = read_jpeg(path)
        if not content:
            left.append(path.name)
            continue
        (stored,) = decoding.decode_jpegs([as_tensor(content)], CPU)
        assert stored is not None
        assert torch.equal(turn_upright(stored, orientation), expected), path
    assert left == ["10.jpg", "20.png"]  # CMYK, and another format


def test_one_broken_file_of_a_batch_leaves_the_others(root: Path) -> None:
    whole, cut = (as_tensor(read_jpeg(next(root.glob(f"*/{name}.jpg")))[0]) for name in ("02", "12"))
    images = decoding.decode_jpegs([whole, cut, whole], CPU)
    assert images[1] is None
    assert images[0] is not None
    assert images[2] is not None
    assert torch.equal(images[0], images[2])


def test_a_shard_that_is_gone_is_a_readers_matter_and_not_the_loaders(root: Path, tmp_path: Path) -> None:
    whole = shutil.copytree(root, tmp_path / "whole", ignore=shutil.ignore_patterns("12.jpg", "13.jpg", "empty.jpg"))
    write_shards(whole, tmp_path / "shards")
    shards = Shards("train", root=str(tmp_path / "shards"), holdout=0)
    for shard in (tmp_path / "shards").glob("*.tar"):
        shard.unlink()
    with pytest.raises(TooManyUnreadableError):
        batches_of(shards, CPU)


def test_images_that_are_no_files_are_refused_in_a_line() -> None:
    with pytest.raises(UserError, match=r"data\.decode is device, but the images of this data set are no files"):
        batches_of(Shapes("train", num_images=8), CPU)


def test_a_cache_of_decoded_images_and_decoding_on_the_device_exclude_each_other() -> None:
    with pytest.raises(UserError, match="a cache keeps decoded images"):
        load_config(
            ["image_folder", "mse", "data.root=x", "data.decode=device", "data.cache={folder: x, gigabytes: 1}"]
        )


def test_a_torchvision_without_decoders_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "decode_jpeg", None)
    with pytest.raises(UserError, match="this torchvision does not offer; set it to workers"):
        batches_of(folder_of(root), CPU)


@pytest.mark.slow
def test_a_run_comes_to_the_weights_of_one_whose_workers_decode(
    root: Path, tmp_path: Path, decoded_here: mock.Mock
) -> None:
    weights = []
    for decode in ("workers", "device"):
        keys = f"kind: image_folder, root: {root}, holdout: 0.2, max_unreadable: 0.3, image_size: 32, decode: {decode}"
        config = debug_config("mse", f"data={{{keys}, size: null, num_images: null}}", "training.epoch_images=32")
        pretrain(config, tmp_path / decode, quiet=True)
        assert decoded_here.called == (decode == "device")
        weights.append(Run(tmp_path / decode).generator().state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.gpu
def test_nvjpeg_differs_from_libjpeg_by_a_few_levels(root: Path) -> None:
    expected, decoded = batches_of(folder_of(root), None), batches_of(folder_of(root), torch.device("cuda"))
    for one, other in zip(expected, decoded, strict=True):
        assert other.images.is_cuda
        assert torch.equal(one.labels, other.labels)
        assert (one.images.float() - other.images.cpu().float()).abs().mean() < 3
