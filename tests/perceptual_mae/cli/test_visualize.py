"""`pmae visualize` of attention, of photographs, and of several runs: what is drawn, and where it goes."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import DEBUG
from perceptual_mae.cli import main, visualize
from perceptual_mae.run.folder import distinct_names
from perceptual_mae.run.run import Run
from perceptual_mae.visualization import image_grid
from perceptual_mae.visualization.image_grid import GREY


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sheets") / "finished"
    quick = ["training.epochs=1", "training.epoch_images=8", "evaluation.limit=4"]
    assert main(["pretrain", DEBUG, "mse", *quick, "--out", str(path)]) == 0
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def drawn(run: Path) -> set[str]:
    return {path.name for path in (run / "images").glob("*") if "epoch" not in path.name}


def test_attention_has_a_column_for_each_head_and_a_file_of_its_own(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["visualize", str(run), "--attention", "--count", "2"]) == 0
    assert drawn(run) == {"attention_00000001.png", "attention_by_patch_00000001.png"}
    with Image.open(run / "images/attention_by_patch_00000001.png") as maps:
        patches = 16
        assert (maps.mode, maps.size) == ("L", (patches, 2 * patches))
        assert all(maps.crop((0, row, patches, row + 1)).getextrema()[1] == 255 for row in range(2 * patches))
    with Image.open(run / "images/attention_00000001.png") as page:
        assert page.width == 4 + 5 * 100  # original, mean, two heads, kept
    printed = capsys.readouterr().out
    assert "kept patches hold 0.6 of its attention" in printed
    assert "coloured from 0" in printed


def test_photographs_of_any_shape_are_prepared_as_held_out_images_and_it_is_reported(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"wide": (300, 40), "tall": (33, 500), "small": (9, 7), "fits": (32, 32)}
    photos = []
    for name, size in sizes.items():
        Image.effect_noise(size, 50).convert("RGB").save(tmp_path / f"{name}.png")
        photos.append(str(tmp_path / f"{name}.png"))
    for options in ([], ["--attention", "--keep", "0.3"]):
        assert main(["visualize", str(run), *photos, *options]) == 0
        (printed,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("scaled")]
        assert printed.endswith("cropped in the middle to 32x32: wide.png 40x300, tall.png 500x33, small.png 7x9")


def test_broken_files_are_all_named_before_anything_is_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    words = [str(tmp_path / "text.png"), str(tmp_path / "absent.jpg"), str(tmp_path)]
    assert main(["visualize", str(run), *words, "--attention"]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert [word in line for word, line in zip(words, printed, strict=True)] == [True] * 3
    assert all(line.startswith("pmae: ") and "give another image file" in line for line in printed)
    assert not drawn(run)


def test_the_sheet_of_several_runs_leaves_that_of_one_alone(run: Path, tmp_path: Path) -> None:
    other = str(shutil.copytree(run, tmp_path / "other"))
    assert main(["visualize", str(run), "--count", "1"]) == 0
    alone = (run / "images/visualize_00000001.png").read_bytes()
    assert main(["visualize", str(run), "--count", "1", "--beside", other]) == 0
    assert main(["visualize", str(run), "--count", "1", "--beside", other, "--attention"]) == 0
    assert drawn(run) == {
        "visualize_00000001.png",
        "visualize_00000001_beside_other.png",
        "attention_00000001_beside_other.png",
    }
    assert (run / "images/visualize_00000001.png").read_bytes() == alone


def test_a_run_may_be_called_original(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = str(shutil.copytree(run, tmp_path / "original"))
    columns: list[str] = []
    real_sheet = image_grid.sheet
    monkeypatch.setattr(image_grid, "sheet", lambda views: [columns.extend(views), real_sheet(views)][1])
    assert main(["visualize", str(run), "--count", "1", "--beside", other, "--view", "raw"]) == 0
    assert columns == ["original", "masked", f"{tmp_path.name}/run", f"{tmp_path.name}/original"]


def test_overlays_of_two_runs_stand_in_four_columns_under_the_same_masks(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "improved"
    quick = ["training.epochs=1", "training.epoch_images=8", "evaluation.limit=4", "training.seed=3"]
    assert main(["pretrain", DEBUG, "improved_mae", *quick, "--out", str(other)]) == 0
    columns: dict[str, Tensor] = {}
    real_sheet = image_grid.sheet
    monkeypatch.setattr(image_grid, "sheet", lambda views: [columns.update(views), real_sheet(views)][1])
    wanted = ["--count", "3", "--beside", str(other), "--view", "composite", "--ratio", "0.9"]
    assert main(["visualize", str(run), *wanted]) == 0
    assert list(columns) == ["original", "masked", "run", "improved"]
    hidden = (columns["masked"] == GREY).all(1, keepdim=True).float()
    assert hidden.mean((1, 2, 3)).tolist() == [15 / 16] * 3  # of 16 patches int(1.6) = 1 is visible
    original = columns["original"]
    for name in ("run", "improved"):
        assert torch.equal(columns[name] * (1 - hidden), original * (1 - hidden))  # laid over the original
        assert not torch.equal(columns[name] * hidden, original * hidden)
    assert not torch.equal(columns["run"], columns["improved"])
    with Image.open(run / "images/visualize_00000001_beside_improved.png") as page:
        assert page.width == 4 + 4 * 100
        for column in range(4):  # a title stands above each
            title = page.convert("L").crop((4 + 100 * column, 0, 100 + 100 * column, 16))
            assert title.getextrema()[0] < 128


def test_many_runs_in_one_sheet_make_no_name_that_a_file_system_refuses(run: Path) -> None:
    long = [f"{letter * 80}" for letter in "abc"]
    names = {visualize.default_path(Run(run), others, "visualize").name for others in (long, long[:2])}
    assert len(names) == 2
    assert all(len(name) < 200 for name in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attention", "--ratio", "0.5", "--seed", "1"], "leave out --ratio, --seed"),
        (["--attention", "--view", "raw"], "leave out --view"),
        (["--keep", "0.5"], "add --attention"),
        (["--attention", "--keep", "1.5"], "--keep"),
    ],
)
def test_options_without_effect_are_refused(
    options: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["visualize", str(run), *options]) == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert message in printed


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["runs/a", "runs/b"], ["a", "b"]),
        (["x/a", "y/a", "x/b"], ["x/a", "y/a", "x/b"]),
        (["x/1/a", "y/1/a"], ["x/1/a", "y/1/a"]),
        (["runs/a", "runs/../runs/a"], ["1 a", "2 a"]),
        (["runs/kept", "runs/a"], ["runs/kept", "runs/a"]),
    ],
)
def test_folders_are_reported_apart_by_as_little_as_it_takes(folders: list[str], names: list[str]) -> None:
    assert distinct_names([Path(folder) for folder in folders], ("kept",)) == names
