"""Copies of shards on a local disk: made once, never beyond their bytes, shared, and nothing that must be there."""

import fcntl
import logging
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from test_shards import make_tar, png

from perceptual_mae.data import shard_cache, shards
from perceptual_mae.data.shard_cache import GIGABYTE, ShardCache
from perceptual_mae.data.shards import Shards


def data(folder: Path, name: str = "data", count: int = 4) -> Path:
    """Shards of 10,240 bytes, of one image each."""
    for number in range(count):
        make_tar(folder / name / f"{number}.tar", [(f"{number}.png", png(number))])
    return folder / name


def opened(root: Path, cache: Path, copies: float = 9, **options: Any) -> Shards:
    asked = ShardCache(folder=str(cache), gigabytes=copies * 10_240 / GIGABYTE)
    return Shards("train", root=str(root), holdout=0, shard_cache=asked, **options)


def copies(cache: Path) -> list[str]:
    return sorted(path.name.partition("-")[2] for path in cache.iterdir())


def read_all(dataset: Shards) -> list[int]:
    return [int(dataset[index][0][0, 0, 0]) for index in range(len(dataset))]


def test_a_shard_is_copied_when_it_is_first_read_and_then_read_from_its_copy(tmp_path: Path) -> None:
    root, cache = data(tmp_path), tmp_path / "cache"
    dataset = opened(root, cache)
    assert not cache.exists()
    dataset[2]
    assert copies(cache) == ["2.tar"]
    assert read_all(dataset) == [0, 1, 2, 3]
    assert copies(cache) == ["0.tar", "1.tar", "2.tar", "3.tar"]
    again = opened(root, cache)
    for shard in root.glob("*.tar"):
        os.truncate(shard, 0)  # whoever reads the original now fails
    with mock.patch.object(shard_cache.shutil, "copyfileobj", side_effect=AssertionError("copied again")):
        assert read_all(again) == [0, 1, 2, 3]


def test_copies_take_no_more_than_their_bytes_and_the_rest_is_read_where_it_is(tmp_path: Path) -> None:
    root, cache = data(tmp_path), tmp_path / "cache"
    dataset = opened(root, cache, copies=2.5)
    assert read_all(dataset) == read_all(dataset) == [0, 1, 2, 3]
    assert copies(cache) == ["0.tar", "1.tar"]


def test_copies_of_other_data_make_room_unless_somebody_reads_them(tmp_path: Path) -> None:
    first, second, cache = data(tmp_path, "first", 2), data(tmp_path, "second", 2), tmp_path / "cache"
    reader = opened(first, cache, copies=2)
    read_all(reader)
    read_all(opened(second, cache, copies=2))
    with mock.patch.object(shard_cache, "remove_unheld", wraps=shard_cache.remove_unheld) as removed:
        read_all(opened(second, cache, copies=2))
    assert removed.call_count == 4  # asked for, and refused: twice for each shard
    names = {path.name for path in cache.iterdir()}
    del reader
    read_all(opened(second, cache, copies=2))
    assert len(copies(cache)) == 2
    assert not names & {path.name for path in cache.iterdir()}


def test_a_shard_that_changes_gets_another_copy(tmp_path: Path) -> None:
    root, cache = data(tmp_path, count=1), tmp_path / "cache"
    assert read_all(opened(root, cache)) == [0]
    make_tar(root / "0.tar", [("0.png", png(200))])
    assert read_all(opened(root, cache)) == [200]


def test_a_copy_that_another_process_makes_is_not_made_twice(tmp_path: Path) -> None:
    root, cache = data(tmp_path, count=1), tmp_path / "cache"
    dataset = opened(root, cache)
    name = shard_cache._name_of(root / "0.tar")
    cache.mkdir()
    unfinished = cache / f".{name}.00aa.partial"
    unfinished.write_bytes(b"half")
    with unfinished.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert read_all(dataset) == [0]
        assert [path.name for path in cache.iterdir()] == [unfinished.name]
        with mock.patch.object(shards, "SECONDS_TO_A_COPY", -1.0):
            assert read_all(opened(root, cache)) == [0]
    # The other process is gone now, and left its half behind.
    assert read_all(opened(root, cache)) == [0]
    assert [path.name for path in cache.iterdir()] == [name]


def test_what_was_read_from_the_mount_is_read_from_a_copy_later(tmp_path: Path) -> None:
    root, cache = data(tmp_path, count=1), tmp_path / "cache"
    dataset = opened(root, cache)
    with mock.patch.object(shards, "SECONDS_TO_A_COPY", -1.0):
        with mock.patch.object(shard_cache.LocalCopies, "_is_copied", return_value=True):
            dataset[0]
        assert not dataset.images._files._files[0].is_copy
        dataset[0]
    assert dataset.images._files._files[0].is_copy


def test_a_full_disk_warns_once_and_the_shards_are_read_where_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = opened(data(tmp_path), tmp_path / "cache")
    full = OSError(28, "No space left on device")
    with (
        caplog.at_level(logging.WARNING),
        mock.patch.object(shard_cache.shutil, "copyfileobj", side_effect=full),
    ):
        assert read_all(dataset) == [0, 1, 2, 3]
    (line,) = [record.getMessage() for record in caplog.records]
    assert "data.shard_cache: " in line
    assert "(No space left on device); it is read where it is" in line
    assert list((tmp_path / "cache").iterdir()) == []


def test_images_are_the_same_with_and_without_copies(tmp_path: Path) -> None:
    root = data(tmp_path)
    plain = Shards("train", root=str(root), holdout=0)
    cached = opened(root, tmp_path / "cache", copies=2)
    assert all(torch.equal(plain[index][0], cached[index][0]) for index in range(4))
