"""A run's folder is found again: from another folder, and after its images have moved."""

import errno
import json
import logging
import os
import re
import shutil
from io import FileIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import DEBUG, debug_config
from perceptual_mae import Run, UserError, pretrain
from perceptual_mae.cli import main
from perceptual_mae.data.dataset import files_sha256
from perceptual_mae.data.image_folder import ImageFolder
from perceptual_mae.run import folder
from perceptual_mae.run.metrics_file import MetricsFile

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


@pytest.mark.parametrize("change", ["another name", "another size"])
def test_a_run_does_not_go_on_with_as_many_other_images(change: str, run: Path, tmp_path: Path) -> None:
    images = tmp_path / "home" / "photographs"
    image = sorted(images.iterdir())[20]
    if change == "another name":
        image.rename(images / "aaa.png")
    else:
        Image.new("RGB", (64, 64)).save(image)
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=r"data\.root: its 36 training images are not those .* --fresh"):
        pretrain(config_of(str(images), "training.epochs=2"), run, quiet=True)
    assert (run / "config.yaml").read_bytes() == before


def test_files_are_known_by_their_names_and_sizes_whatever_folder_they_are_in(tmp_path: Path) -> None:
    photographs(tmp_path / "a", 4)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    options = {"split": "train", "holdout": 0.25}
    first, second = (files_sha256(ImageFolder(root=str(tmp_path / name), **options)) for name in "ab")
    assert first is not None
    assert first == second
    (tmp_path / "b" / "absent.png").symlink_to("nowhere")
    assert files_sha256(ImageFolder(root=str(tmp_path / "b"), **options)) != first
    assert files_sha256(debug_config("mse").data.build("train")) is None  # drawn, not read


def test_a_home_folder_is_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    photographs(tmp_path / "photographs")
    pretrain(config_of("~/photographs"), tmp_path / "run", quiet=True)
    assert Run(tmp_path / "run").config.data.options()["root"] == str(tmp_path / "photographs")


@pytest.mark.slow
def test_a_resume_past_a_damaged_checkpoint_is_said_and_kept_in_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(debug_config("mse"), tmp_path / "run", quiet=True)
    (tmp_path / "run" / "checkpoints" / "step_00000008" / "optimizer.safetensors").write_bytes(b"damaged")
    capsys.readouterr()
    pretrain(debug_config("mse"), tmp_path / "run")
    words = "step_00000008 is damaged (optimizer.safetensors changed since it was written)"
    assert f"warning: {words}: the run goes on from step 4 instead" in capsys.readouterr().err
    assert words in (tmp_path / "run" / "log.txt").read_text()
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    (passed_over,) = environment["passed_over"]
    assert passed_over["checkpoint"] == "step_00000008"
    assert passed_over["reason"] in words
    assert environment["versions"]
    assert Run(tmp_path / "run").step == 8


def test_a_checkpoint_without_its_optimizer_does_not_restart_it_in_silence(tmp_path: Path) -> None:
    config = debug_config("mse", "training.epochs=1")
    pretrain(config, tmp_path / "run", quiet=True)
    path = Run(tmp_path / "run").checkpoint
    (path / "optimizer.safetensors").unlink()
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["optimizer.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"no checkpoint is whole .*does not list optimizer\.safetensors"):
        pretrain(config, tmp_path / "run", quiet=True)


def test_averaged_weights_that_were_removed_are_missed(tmp_path: Path) -> None:
    pretrain(debug_config("mse", "training.epochs=1", "training.ema_kimg=0.05"), tmp_path / "run", quiet=True)
    path = Run(tmp_path / "run").checkpoint
    (path / "generator_ema.safetensors").unlink()
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["generator_ema.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"does not list generator_ema\.safetensors"):
        Run(path)


def test_another_name_is_no_checkpoint(run: Path) -> None:
    stray = run / "checkpoints" / "step_x"
    stray.mkdir()
    assert Run(run).step == 4
    with pytest.raises(UserError, match="is not the name of a checkpoint"):
        Run(stray)


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("pathlib.Path.write_text", r"\.lock"),
        ("perceptual_mae.run.folder.write_atomically", "run"),
        ("perceptual_mae.run.metrics_file._finite", "run"),
        ("PIL.Image.Image.save", r"epoch_0001\.png"),
        ("perceptual_mae.run.checkpoint.save_file", "step_00000004"),
        ("perceptual_mae.training.loop.write_json", "run"),
    ],
)
def test_a_full_disk_is_a_line_that_names_a_file_and_leaves_no_half_of_one(
    target: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(target, no_space)
    code = main(["pretrain", DEBUG, "mse", "training.epochs=1", "--out", str(tmp_path / "run")])
    printed = capsys.readouterr().err
    assert code == 2
    (line,) = [line for line in printed.splitlines() if line.startswith("pmae: ")]
    assert re.search(rf"/{name}: .*(No space left on device|the disk is full)", line)
    assert re.search("make room|free some space", line)
    assert "Traceback" not in printed
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".partial")]
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_line_of_metrics_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)
    metrics.write({"step": 1})
    opened = Path.open

    def nearly_full(path: Path, *arguments: object, **options: object) -> object:
        file = opened(path, *arguments, **options)

        class NearlyFull(FileIO):
            def write(self, line: memoryview) -> int:
                if len(line) < 10:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return super().write(line[:5])

        number = file.detach().fileno() if hasattr(file, "detach") else os.dup(file.fileno())
        return NearlyFull(number, "a")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", nearly_full)
        with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'"):
            metrics.write({"step": 2, "total": 1.0})
    metrics.write({"step": 3})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 3}\n'


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_log_that_cannot_be_written_is_an_error_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    log = folder.LogFile(tmp_path)
    try:
        with pytest.raises(OSError, match=r"No space left on device: '.*log\.txt'"):
            logging.getLogger("perceptual_mae.run").info("a line")
        logging.getLogger("perceptual_mae.run").info("another line")
    finally:
        log.close()
    assert capsys.readouterr().err == ""
