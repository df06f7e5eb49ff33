"""The labelled images a run is scored on: its own, another recipe's, a folder's."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import debug_config, write_black_stl10
from perceptual_mae.data.shape_drawing import KINDS
from perceptual_mae.data.shard_writing import write_shards
from perceptual_mae.data.subsets import limited
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.labelled_data import (
    accuracy_interval,
    few_images_warning,
    open_labelled,
    with_data,
)


def write_images(folder: Path, count: int, size: int = 20) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.full((size, size, 3), 4 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    for split, count in (("train", 6), ("test", 3)):
        for name in ("cat", "dog"):
            write_images(tmp_path / "animals" / split / name, count)
    return tmp_path / "animals"


def test_a_labelled_run_is_scored_on_its_own_data() -> None:
    config = debug_config("mse")
    assert with_data(config, None) is config
    data = open_labelled(config)
    assert (data.name, data.split, data.num_classes) == ("shapes", "test", len(KINDS))
    assert (len(data.train), len(data.test)) == (96, 9)
    assert data.transform.size == (32, 32)


def test_a_folder_takes_the_place_of_the_runs_data_but_not_of_its_preprocessing(animals: Path) -> None:
    config = debug_config("mse", "data.eval_resize=40", "data.mean=[0.1, 0.2, 0.3]")
    other = with_data(config, str(animals))
    assert (other.data.kind, other.data.options()["root"]) == ("image_folder", str(animals))
    assert (other.data.size, other.data.eval_resize, other.data.mean) == ((32, 32), 40, (0.1, 0.2, 0.3))
    assert other.generator == config.generator
    data = open_labelled(other, name="animals")
    assert (data.train.classes, len(data.train), len(data.test)) == (("cat", "dog"), 12, 6)
    assert data.transform.resize == 40


def test_a_folder_of_shards_is_read_as_what_it_is(animals: Path, tmp_path: Path) -> None:
    write_shards(animals, tmp_path / "shards")
    other = with_data(debug_config("mse"), str(tmp_path / "shards"))
    assert other.data.kind == "shards"
    data = open_labelled(other)
    assert (data.train.classes, len(data.train), len(data.test)) == (("cat", "dog"), 12, 6)


def test_a_recipe_gives_its_data_and_split_and_overrides_come_last(animals: Path) -> None:
    config = debug_config("mse")
    other = with_data(config, "imagenet", [f"data.root={animals}", "data.test=test"])
    assert other.data.options()["root"] == str(animals)
    assert other.data.options()["test"] == "test"
    assert (other.data.size, other.data.eval_resize) == ((32, 32), None)
    assert len(open_labelled(other).test) == 6


def test_a_key_of_the_runs_own_data_may_change() -> None:
    other = with_data(debug_config("mse"), None, ["data.num_images=48"])
    assert len(open_labelled(other).train) == 48


@pytest.mark.parametrize(
    ("data", "overrides", "message"),
    [
        ("cifar11", [], "--data: unknown layer 'cifar11'.*or a folder of images"),
        ("ls_gan", [], "--data: ls_gan says nothing of data"),
        (None, ["training.epochs=3"], "only keys of the data"),
        (None, ["data.root"], "only keys of the data"),
        (None, ["data.sise=3"], "data.sise: unknown"),
        ("cifar10", ["data.root=/nowhere"], "data.root: /nowhere"),
    ],
)
def test_what_does_not_exist_is_the_users_mistake(data: str | None, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_labelled(with_data(debug_config("mse"), data, overrides))


def test_photographs_without_classes_are_refused_with_the_way_out(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 30)
    config = with_data(debug_config("mse"), str(tmp_path / "photos"))
    with pytest.raises(UserError, match="train images of image_folder carry no labels; name a labelled set: --data"):
        open_labelled(config)


def test_a_picture_that_takes_the_labels_away_is_named(animals: Path) -> None:
    stray = animals / "train" / "cover.png"
    Image.new("RGB", (4, 4)).save(stray)
    config = with_data(debug_config("mse"), str(animals))
    with pytest.raises(UserError, match=f"carry no labels, for {stray} is next to the class folders: move it"):
        open_labelled(config)


@pytest.mark.parametrize(
    ("right", "images", "interval"),
    [(5, 6, (0.4365, 0.9699)), (0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (50, 100, (0.4038, 0.5962))],
)
def test_the_interval_of_an_accuracy_is_wilsons(right: int, images: int, interval: tuple[float, float]) -> None:
    """Values of statsmodels.stats.proportion.proportion_confint(right, images, method="wilson")."""
    assert accuracy_interval(right / images, images) == pytest.approx(interval, abs=1e-4)


@pytest.mark.parametrize(
    ("overrides", "limit", "advice"),
    [
        ([], None, "put more into {root}/test, or name another folder with data.test"),
        ([], 4, "raise --test-limit"),
        (["data.root={root}/train", "data.holdout=0.2"], None, "hold out more with data.holdout"),
        (
            ["data.root={root}/train", "data.split_fractions=[0.5,0,0.5]"],
            None,
            "hold out more with data.split_fractions",
        ),
    ],
)
def test_few_test_images_are_warned_of_with_what_to_change(
    animals: Path, overrides: list[str], limit: int | None, advice: str
) -> None:
    config = with_data(debug_config("mse"), str(animals), [each.format(root=animals) for each in overrides])
    data = open_labelled(config, test_limit=limit)
    warning = few_images_warning(6, data.more_images, 5 / 6)
    assert warning == (
        f"6 test images tell little: the 95 % interval of 83.33 % is 43.6 to 97.0 %; {advice.format(root=animals)}"
    )
    assert few_images_warning(99, data.more_images) is not None
    assert few_images_warning(100, data.more_images) is None


def test_a_test_part_with_other_classes_is_refused(tmp_path: Path) -> None:
    for part in ("train/cat", "train/dog", "train/bird"):
        write_images(tmp_path / "animals" / part, 3)
    write_images(tmp_path / "animals" / "test", 3)  # flat: no labels
    config = with_data(debug_config("mse"), str(tmp_path / "animals"))
    with pytest.raises(UserError, match="the test images of image_folder carry no labels"):
        open_labelled(config)


def test_the_labelled_part_of_stl10_is_taken_whatever_the_run_trained_on(tmp_path: Path) -> None:
    write_black_stl10(tmp_path, unlabeled=12, train=10, test=10)
    stl10 = f"data={{kind: stl10, root: {tmp_path}, image_size: 32}}"
    config = debug_config("mse", stl10, "data.num_images=null", "data.size=null")
    assert len(config.data.build("train")) == 12
    data = open_labelled(config)
    assert (len(data.train), data.num_classes) == (10, 10)


def test_a_limit_takes_the_same_images_of_every_class_each_time(animals: Path) -> None:
    config = with_data(debug_config("mse"), str(animals))
    data, again = (open_labelled(config, limit=8, test_limit=2) for _ in range(2))
    assert (len(data.train), len(data.test), data.limit, data.test_limit) == (8, 2, 8, 2)
    labels = [data.train[index][1] for index in range(8)]
    assert labels == [again.train[index][1] for index in range(8)]
    assert set(labels) == {0, 1}  # the first eight files are six cats and two dogs
    whole = open_labelled(config, limit=1000).train
    assert [whole[index][1] for index in range(12)] == [0] * 6 + [1] * 6


def test_a_shorter_set_holds_no_image_twice() -> None:
    dataset = open_labelled(debug_config("mse")).train
    shorter = limited(dataset, 50)
    kept = {bytes(shorter[index][0].numpy()) for index in range(len(shorter))}
    assert len(shorter) == len(kept) == 50
    assert kept < {bytes(dataset[index][0].numpy()) for index in range(96)}
