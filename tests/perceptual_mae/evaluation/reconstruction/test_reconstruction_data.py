"""Which images are reconstructed, with or without labels."""

from pathlib import Path

import pytest
from PIL import Image

from conftest import debug_config
from perceptual_mae.data.dataset import file_name
from perceptual_mae.data.shard_writing import write_shards
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.reconstruction.data import open_held_out, with_images, with_masking


def photographs(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(folder / f"{number:02}.png")
    return folder


def test_a_limit_takes_the_same_images_of_a_shuffle_and_knows_their_places() -> None:
    whole = open_held_out(debug_config("mse"))
    part = open_held_out(debug_config("mse"), limit=4)
    assert list(whole.indices) == list(range(len(whole.dataset)))
    assert len(part.indices) == 4
    assert list(part.indices) == sorted(part.indices) != list(range(4))
    assert open_held_out(debug_config("mse"), limit=4).indices == part.indices
    assert len(part.dataset) == len(whole.dataset)


def test_a_plain_folder_without_labels_counts_whole(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "photos", 20)
    data = open_held_out(with_images(debug_config("mse"), str(folder), [], None), name=str(folder))
    assert len(data.indices) == 20
    assert file_name(data.dataset, 3) == "03.png"
    assert data.transform.size == (32, 32)


def test_a_folder_with_splits_and_the_folder_of_the_run_keep_their_split(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "photos", 20)
    plain = ["data.size=null", "data.num_images=null"]
    trained = debug_config("mse", f"data={{kind: image_folder, root: {folder}, image_size: 32}}", *plain)
    assert len(open_held_out(with_images(trained, str(folder), [], None)).indices) == 1
    assert len(open_held_out(trained).indices) == 1
    assert len(open_held_out(with_images(debug_config("mse"), str(folder), ["data.holdout=0.2"], None)).indices) == 4
    photographs(folder / "test", 3)
    assert len(open_held_out(with_images(debug_config("mse"), str(folder), [], "test")).indices) == 3


def test_a_folder_of_shards_counts_whole_and_that_of_the_run_keeps_its_split(tmp_path: Path) -> None:
    root = tmp_path / "shards"
    write_shards(photographs(tmp_path / "photos", 20), root)
    assert len(open_held_out(with_images(debug_config("mse"), str(root), [], None)).indices) == 20
    plain = ["data.size=null", "data.num_images=null"]
    trained = debug_config("mse", f"data={{kind: shards, root: {root}, image_size: 32}}", *plain)
    assert len(open_held_out(with_images(trained, str(root), [], None)).indices) == 1


def test_another_masking_keeps_the_ratio_and_an_unknown_one_is_refused() -> None:
    config = debug_config("mse", "masking.ratio=0.5")
    other = with_masking(config, "perceptual_mae.masking:random")
    assert (other.masking.kind, other.masking.ratio) == ("perceptual_mae.masking:random", 0.5)
    assert with_masking(config, None) is config
    with pytest.raises(UserError, match="--mask: unknown masking 'blok'; choose from: random"):
        with_masking(config, "blok")
