"""Decoded images are kept as they were, whole or not at all, and batches are those without a cache."""

import os
import pickle
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import debug_config
from perceptual_mae import UserError, pretrain
from perceptual_mae.data import pixel_cache
from perceptual_mae.data.dataset import ImageDataset, files_sha256
from perceptual_mae.data.decoding import UnreadableImageError
from perceptual_mae.data.image_folder import ImageFolder
from perceptual_mae.data.loading import EpochPlan, TrainLoader
from perceptual_mae.data.pixel_cache import GIGABYTE, CachedImages, PixelCache
from perceptual_mae.data.shapes import Shapes
from perceptual_mae.data.shard_writing import write_shards
from perceptual_mae.data.shards import Shards
from perceptual_mae.data.transforms import TrainTransform
from perceptual_mae.run.run import Run
from photographs import photos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """PNG and JPEG of several sizes, turned and grey ones, and one that is cut off."""
    root = photos(tmp_path / "photos", each=4)
    rng = np.random.default_rng(5)
    for number in range(6):
        pixels = rng.integers(0, 256, (30 + number, 50 - number, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[274] = number + 1  # orientation
        Image.fromarray(pixels).save(root / f"a/{number}.jpg", exif=exif)
    Image.fromarray(rng.integers(0, 256, (33, 21), dtype=np.uint8)).save(root / "b/grey.png")
    cut = root / "b/00.png"
    cut.write_bytes(cut.read_bytes()[:2000])
    return root


def cached(dataset: ImageDataset, cache: Path, gigabytes: float = 1) -> CachedImages:
    return CachedImages(dataset, PixelCache(folder=str(cache), gigabytes=gigabytes))


def whole(root: Path) -> ImageFolder:
    return ImageFolder("train", root=str(root), holdout=0, max_unreadable=0.2)


NEVER = mock.patch("perceptual_mae.data.image_tree.read_image", side_effect=AssertionError("decoded again"))


def test_images_are_those_of_the_data_set_decoded_once(folder: Path, tmp_path: Path) -> None:
    plain, kept = whole(folder), cached(whole(folder), tmp_path / "cache")
    expected: list[Any] = []
    for index in range(len(plain)):
        try:
            expected.append(plain[index])
        except UnreadableImageError as error:
            expected.append(error)
    kept.fill(0)
    with NEVER:
        for index, item in enumerate(expected):
            if isinstance(item, UnreadableImageError):
                continue
            image, label = kept[index]
            assert torch.equal(image, item[0])
            assert label == item[1]
    (bad,) = [index for index, item in enumerate(expected) if isinstance(item, UnreadableImageError)]
    with pytest.raises(UnreadableImageError) as error:
        kept[bad]
    assert error.value.reason == expected[bad].reason
    assert all(item[0].is_contiguous() for item in expected if not isinstance(item, UnreadableImageError))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_are_those_without_a_cache(folder: Path, tmp_path: Path, workers: int) -> None:
    transform = TrainTransform((16, 16), color_jitter=0.2)

    def batches(dataset: ImageDataset, workers: int) -> list[Any]:
        loader = TrainLoader(dataset, transform, EpochPlan(len(dataset), 5, seed=1), seed=1, workers=workers)
        result = [batch for epoch in (1, 2) for step in loader.epoch(epoch) for batch in step]
        loader.close()
        return result

    kept = cached(whole(folder), tmp_path / "cache")
    kept.fill(workers)
    for ours, theirs in zip(batches(kept, workers), batches(whole(folder), 0), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)
        assert ours.unreadable == theirs.unreadable


def test_shards_are_kept_like_folders(tmp_path: Path) -> None:
    write_shards(photos(tmp_path / "photos", each=3), tmp_path / "shards")
    plain = Shards("train", root=str(tmp_path / "shards"), holdout=0)
    kept = cached(Shards("train", root=str(tmp_path / "shards"), holdout=0), tmp_path / "cache")
    first = kept.fill(0)
    with mock.patch("perceptual_mae.data.shards.read_image", side_effect=AssertionError("decoded again")):
        images = [kept[index][0] for index in range(6)]
    assert all(torch.equal(image, plain[index][0]) for index, image in enumerate(images))
    os.utime(tmp_path / "shards/shard-000000.tar", ns=(1, 1))
    assert cached(Shards("train", root=str(tmp_path / "shards"), holdout=0), tmp_path / "cache").fill(0) != first


def test_a_file_is_used_again_until_an_image_changes(folder: Path, tmp_path: Path) -> None:
    first = cached(whole(folder), tmp_path / "cache").fill(0)
    with NEVER:
        assert cached(whole(folder), tmp_path / "cache").fill(0) == first
    path = folder / "a/01.png"
    pixels = np.full((40, 36, 3), 7, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    kept = cached(whole(folder), tmp_path / "cache")
    assert kept.fill(0) != first
    (index,) = [index for index in range(len(kept)) if kept.file_path(index) == path]
    assert int(kept[index][0].max()) == 7


def test_a_data_set_with_a_cache_is_the_same_to_whoever_asks(folder: Path, tmp_path: Path) -> None:
    plain, kept = whole(folder), cached(whole(folder), tmp_path / "cache")
    assert (kept.classes, len(kept), kept.more_images) == (plain.classes, len(plain), plain.more_images)
    assert files_sha256(kept) == files_sha256(plain)
    assert kept.max_unreadable == 0.2
    assert not hasattr(kept, "encoded")
    assert torch.equal(pickle.loads(pickle.dumps(kept))[0][0], plain[0][0])
    kept.fill(0)
    assert torch.equal(pickle.loads(pickle.dumps(kept))[0][0], plain[0][0])


def test_a_kill_in_the_middle_leaves_nothing_that_is_read(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    kept = cached(whole(folder), cache)
    with mock.patch.object(pixel_cache.np, "savez", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        kept.fill(0)
    assert list(cache.iterdir()) == []
    half = cache / f".{kept._key()}.a1.partial" / kept._key()  # as SIGKILL leaves it
    half.mkdir(parents=True)
    (half / "pixels").write_bytes(b"half")
    path = kept.fill(0)
    assert list(cache.iterdir()) == [path]
    with NEVER:
        assert torch.equal(kept[0][0], torch.from_numpy(np.array(Image.open(kept.file_path(0)))).permute(2, 0, 1))


def test_two_writers_decode_once(folder: Path, tmp_path: Path) -> None:
    sets = [cached(whole(folder), tmp_path / "cache") for _ in range(4)]
    with mock.patch.object(CachedImages, "_write", autospec=True, side_effect=CachedImages._write) as written:
        threads = [threading.Thread(target=each.fill, args=(0,)) for each in sets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert written.call_count == 1
    with NEVER:
        assert len({int(each[0][0].long().sum()) for each in sets}) == 1


def test_more_than_it_may_hold_is_refused_and_old_ones_go_first(tmp_path: Path) -> None:
    first, second = (photos(tmp_path / name, each=2) for name in ("first", "second"))
    size = 4 * 3 * 40 * 36
    with pytest.raises(UserError, match=r"4 decoded images take 1\.73e-05 GB, more than data\.cache\.gigabytes"):
        cached(whole(first), tmp_path / "cache", (size - 1) / GIGABYTE).fill(0)
    kept = cached(whole(first), tmp_path / "cache", 1.5 * size / GIGABYTE)
    path = kept.fill(0)
    with pytest.raises(UserError, match=r"of which others have 1\.73e-05 in use; raise it, or set data\.cache=null"):
        cached(whole(second), tmp_path / "cache", 1.5 * size / GIGABYTE).fill(0)
    assert path.exists()
    del kept  # nobody reads it any more
    assert cached(whole(second), tmp_path / "cache", 1.5 * size / GIGABYTE).fill(0) != path
    assert not path.exists()


def test_images_without_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.cache: the images of this data set are in no files of their own"):
        cached(Shapes("train", num_images=4), tmp_path)


@pytest.mark.slow
def test_a_run_with_a_cache_comes_to_the_weights_of_one_without(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(name: str, *more: str) -> dict[str, torch.Tensor]:
        keys = ", ".join((f"kind: image_folder, root: {folder}, image_size: 32, max_unreadable: 0.2", *more))
        data = f"data={{{keys}, size: null, num_images: null}}"
        pretrain(debug_config("mse", data, "training.epoch_images=32"), tmp_path / name, quiet=True)
        return Run(tmp_path / name).generator().state_dict()

    expected = run("plain")
    for workers in (0, 2):
        weights = run(f"{workers}", f"workers: {workers}, cache: {{folder: {tmp_path / 'cache'}, gigabytes: 1}}")
        assert all(torch.equal(value, weights[name]) for name, value in expected.items())
    assert len(list((tmp_path / "cache").iterdir())) == 1
    with mock.patch.object(pixel_cache.os, "posix_fallocate", side_effect=OSError(28, "No space left on device")):
        weights = run("full", f"cache: {{folder: {tmp_path / 'other'}, gigabytes: 1}}")
    assert all(torch.equal(value, weights[name]) for name, value in expected.items())
    assert "data.cache could not be written (No space left on device): images are decoded" in caplog.text
    with pytest.raises(UserError, match=r"more than data\.cache\.gigabytes"):
        run("small", f"cache: {{folder: {tmp_path / 'small'}, gigabytes: 1.0e-6}}")
