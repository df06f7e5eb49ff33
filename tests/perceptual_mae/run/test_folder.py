"""A run's folder is found again: from another folder, and after its images have moved."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import debug_config
from perceptual_mae import Run, UserError, pretrain
from perceptual_mae.cli import main

COUNT = 40


def photographs(folder: Path, count: int = COUNT) -> None:
    folder.mkdir(parents=True)
    pixels = torch.randint(0, 256, (count, 40, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for index, image in enumerate(pixels):
        Image.fromarray(image.numpy()).save(folder / f"{index:03}.png")


def config_of(root: str, *overrides: str):
    own = ["data.kind=image_folder", "data.size=null", "data.num_images=null", f"data.root={root}"]
    return debug_config("mse", *own, "training.epochs=1", *overrides)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of one epoch that was started in the folder `home` on the images `photographs` in it."""
    photographs(tmp_path / "home" / "photographs")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    pretrain(config_of("photographs"), "run", quiet=True)
    return tmp_path / "home" / "run"


def test_a_run_knows_its_images_from_any_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Run(run).config.data.options()["root"] == str(tmp_path / "home" / "photographs")
    assert len(Run(run).config.data.build("train")) > 0
    assert main(["visualize", str(run), "--count", "2", "--out", "sheet.png"]) == 0
    assert (tmp_path / "elsewhere" / "sheet.png").exists()


@pytest.mark.parametrize("root", ["../home/photographs", "moved"])
def test_a_run_goes_on_from_another_folder_and_with_images_that_have_moved(
    root: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "elsewhere")
    if root == "moved":
        (tmp_path / "home" / "photographs").rename("moved")
    summary = pretrain(config_of(root, "training.epochs=2"), run, quiet=True)
    assert summary["steps"] == 8
    assert Path(Run(run).config.data.options()["root"]) == (tmp_path / "elsewhere" / root).resolve()


def test_a_run_does_not_go_on_with_another_number_of_images(run: Path, tmp_path: Path) -> None:
    photographs(tmp_path / "others", COUNT + 20)
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=r"data\.root: there are 54 training images, but the run in .* on 36;"):
        pretrain(config_of(str(tmp_path / "others"), "training.epochs=2"), run, quiet=True)
    assert (run / "config.yaml").read_bytes() == before


def test_a_home_folder_is_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    photographs(tmp_path / "photographs")
    pretrain(config_of("~/photographs"), tmp_path / "run", quiet=True)
    assert Run(tmp_path / "run").config.data.options()["root"] == str(tmp_path / "photographs")
