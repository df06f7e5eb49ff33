"""`pmae data`: what is packed, what is found, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import DEBUG
from perceptual_mae import cli, pretrain
from perceptual_mae.config.parsing import load_config
from perceptual_mae.data.shard_writing import write_shards
from photographs import photos

CASES = Path(__file__).parents[3] / "../shared/cases"


def test_shards_are_packed_and_checked_by_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = photos(tmp_path / "photos", each=5), tmp_path / "shards"
    assert cli.main(["data", "shard", str(root), "--out", str(out), "--size-mb", "0.04"]) == 0
    assert "10 images in 2 shards" in capsys.readouterr().out
    assert cli.main(["data", "shard", str(root), "--out", str(out)]) == 2
    assert "holds shards already; replace them with --overwrite" in capsys.readouterr().err
    assert (
        cli.main(
            ["data", "check", str(out), "--workers", "0", "--image-size", "32", "--json", str(tmp_path / "c.json")]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "images: 10 images, all readable" in printed
    assert "classes     2, 5 to 5 readable images each" in printed
    tree = json.loads((tmp_path / "c.json").read_text())["images"]
    assert tree["height"] == {"min": 40, "median": 40, "max": 40}
    assert tree["width"] == {"min": 36, "median": 36, "max": 36}
    assert (tree["modes"], tree["classes"], tree["warnings"]) == ({"RGB": 10}, {"a": 5, "b": 5}, [])


def test_a_check_lists_all_that_cannot_be_read_and_what_is_odd(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos(tmp_path / "train", each=4).parent
    grey = np.random.default_rng(1).integers(0, 256, (20, 300), dtype=np.uint8)
    Image.fromarray(grey).save(root / "train/a/grey.png")
    (root / "train/a/99.png").write_bytes((root / "train/a/00.png").read_bytes())
    (root / "train/a/02.png").write_bytes(b"")
    cut = root / "train/b/01.png"
    cut.write_bytes(cut.read_bytes()[:2000])
    photos(root / "test", each=1)  # the first two images of train/a
    options = ["--workers", "0", "--image-size", "36x36", "--json", str(tmp_path / "c")]
    assert cli.main(["data", "check", str(root), *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == (
        "pmae: 2 of 12 images cannot be read; they are listed above: fix or remove them"
    )
    train = json.loads((tmp_path / "c").read_text())["train"]
    assert train["unreadable"] == {
        "a/02.png": "an empty file",
        "b/01.png": train["unreadable"]["b/01.png"],
    }
    assert train["classes"] == {"a": 5, "b": 3}
    assert train["modes"] == {"RGB": 7, "L": 1}
    assert train["duplicates"] == [["a/00.png", "a/99.png"]]
    assert train["width"] == {"min": 36, "median": 36, "max": 300}
    assert "1 images are smaller than the crop, 36x36" in train["warnings"][0]
    (warning,) = [line for line in captured.out.splitlines() if "another split" in line][-1:]
    assert "2 images are in another split, too, such as a/00.png and train's a/00.png" in warning


@pytest.mark.skipif(not CASES.is_dir(), reason="the odd files are not there")
def test_a_check_of_odd_files_reads_what_training_reads_in_any_number_of_workers(tmp_path: Path) -> None:
    trees = []
    for workers in ("0", "2"):
        assert cli.main(["data", "check", str(CASES), "--workers", workers, "--json", str(tmp_path / "c.json")]) == 2
        trees.append(json.loads((tmp_path / "c.json").read_text())["images"])
    assert trees[0] == trees[1]
    assert set(trees[0]["unreadable"]) == {"empty.png", "float01.tif", "html.jpg", "truncated.jpg"}


def test_runs_and_recipes_are_checked_by_their_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check", DEBUG, "data.num_images=12", "--workers", "0"]) == 0
    printed = capsys.readouterr().out
    assert "train: 12 images, all readable" in printed
    assert "\ntest: " in printed
    root = photos(tmp_path / "photos", each=20)
    write_shards(root, tmp_path / "shards")
    data = (
        f"data={{kind: shards, root: {tmp_path / 'shards'}, image_size: 32, workers: 0, size: null, num_images: null}}"
    )
    pretrain(load_config([DEBUG, "mse", data, "training.epochs=1"]), tmp_path / "run", quiet=True)
    assert cli.main(["data", "check", str(tmp_path / "run"), "--workers", "0"]) == 0
    assert "train: 36 images, all readable" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "check", "nowhere"], "nowhere"),
        (["data", "check", ".", "data.root=x"], "a folder of images has no keys"),
        (["data", "check", "."], "no image below"),
        (["data", "check", ".", "--json", "no/such/file.json"], "give --json a file in a folder that exists"),
        (["data", "check", ".", "--image-size", "0"], "--image-size is '0'"),
        (["data", "shard", "nowhere", "--out", "out"], "nowhere: does not exist; give a folder of images"),
        (["data", "shard", ".", "--out", "."], "holds the images; name another folder"),
        (["data", "shard", ".", "--out", "out"], "no image below"),
        (["data", "shard", ".", "--out", "out", "--size-mb", "0"], "--size-mb"),
    ],
)
def test_mistakes_are_a_line_and_leave_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_shard_ends_a_check_and_a_run_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(photos(tmp_path / "photos", each=5), tmp_path / "shards")
    shard = tmp_path / "shards/shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:20_000])
    data = f"data={{kind: shards, root: {tmp_path / 'shards'}, image_size: 32, size: null, num_images: null}}"
    for arguments in (
        ["data", "check", str(tmp_path / "shards")],
        ["pretrain", DEBUG, "mse", data, "--out", str(tmp_path / "r")],
    ):
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "shard-000000.tar: a/03.png: cut off, the shard ends within it; copy the shard again" in error
    assert not (tmp_path / "r").exists()
