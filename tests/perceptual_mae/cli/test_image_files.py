"""What a run says of its image files before its first step, and in the middle of it."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from conftest import DEBUG, slow
from perceptual_mae.cli import main
from perceptual_mae.data import image_tree, unreadable
from perceptual_mae.data.image_folder import ImageFolder
from perceptual_mae.run.run import Run
from photographs import Spoilt, arguments, photos
from processes import run_two_processes


def spoilt_photos(root: Path) -> tuple[Path, list[Path]]:
    """Photos in two class folders, with three files among them that are none."""
    photos(root)
    bad = [root / name for name in ("a/x0.png", "b/x1.png", "b/x2.png")]
    for path in bad:
        path.write_text("no image")
    return root, bad


def test_a_folder_with_bad_files_is_refused_before_the_first_step_and_all_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root, bad), run = spoilt_photos(tmp_path / "photos"), tmp_path / "run"
    asked = arguments(root, "split_fractions: [0.8, 0, 0.2]")
    assert main([*asked, "--dry-run", "--out", str(run)]) == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    assert "images cannot be read, more than 1%" in message
    assert not run.exists()

    assert main([*asked, "--out", str(run)]) == 2
    assert f"all are listed in {run / 'unreadable.txt'}" in capsys.readouterr().err
    listed = (run / "unreadable.txt").read_text().splitlines()
    assert sorted(listed) == [f"{path}: no image of a known format" for path in bad]
    assert not (run / "checkpoints").exists()


@pytest.mark.slow
def test_the_advice_to_raise_the_share_is_followed_in_the_same_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root, bad), run = spoilt_photos(tmp_path / "photos"), tmp_path / "run"
    assert main([*arguments(root, "split_fractions: [0.8, 0, 0.2]"), "--out", str(run)]) == 2
    capsys.readouterr()
    more = arguments(root, "split_fractions: [0.8, 0, 0.2]", "max_unreadable: 0.3")
    assert main([*more, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "of which cannot be read: " in printed
    assert "x0.png: no image of a known format" in printed
    assert main([*more, "--out", str(run)]) == 0
    train = Run(run).config.data.build("train")
    trained_on = {train.file_path(index) for index in range(len(train))} & set(bad)
    assert Run(run).summary()["unreadable_images"] == len(trained_on)


@pytest.mark.slow
def test_whole_headers_over_cut_pixels_are_replaced_counted_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = photos(tmp_path / "photos"), tmp_path / "run"
    cut = ImageFolder("train", root=str(root), holdout=0.2).file_path(3)
    cut.write_bytes(cut.read_bytes()[:2000])
    asked = [*arguments(root, "holdout: 0.2", "max_unreadable: 0.1"), "training.epoch_images=64"]
    assert main([*asked, "--dry-run"]) == 0
    assert "cannot be read" not in capsys.readouterr().out
    assert main([*asked, "--out", str(run)]) == 0
    listed = (run / "unreadable.txt").read_text().splitlines()
    assert [line.partition(": ")[0] for line in listed] == [str(cut)]
    assert Run(run).summary()["unreadable_images"] == 1


def test_an_excess_of_cut_files_in_mid_run_saves_first_and_names_the_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt = Spoilt(tmp_path)
    assert spoilt.train() == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pmae: ")]
    assert f"{spoilt.run}: 2 of 28 images cannot be read so far, more than 4%" in line
    assert f"all are listed in {spoilt.run / 'unreadable.txt'}" in line
    assert "the last checkpoint is step_00000002" in line
    listed = (spoilt.run / "unreadable.txt").read_text().splitlines()
    assert sorted(line.partition(": ")[0] for line in listed) == sorted(map(str, spoilt.cut))
    assert Run(spoilt.run).step == 2


@pytest.mark.slow
def test_an_excess_of_cut_files_among_the_scored_ones_saves_the_epoch_that_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = photos(tmp_path / "photos"), tmp_path / "run"
    test = ImageFolder("test", root=str(root), holdout=0.2)
    for index in range(2):
        test.file_path(index).write_bytes(test.file_path(index).read_bytes()[:2000])
    asked = [*arguments(root, "holdout: 0.2"), "training.checkpoint_every=9", "training.epochs=2"]
    asked += ["training.epoch_images=16", "evaluation.limit=10", "--out", str(run)]
    assert main(asked) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pmae: ")]
    assert "2 of 10 images cannot be read so far, more than 1%" in line
    assert "the last checkpoint is step_00000002" in line
    assert main(asked) == 2  # of the epoch that is to be scored still
    assert main([*asked, "data.max_unreadable=0.3"]) == 0
    assert Run(run).step == 4


BY_TWO = """
import os, sys
from perceptual_mae.cli import main
code = main(sys.argv[1:])
print(f"rank {os.environ['RANK']} ended with {code}")
"""


@pytest.mark.slow
def test_an_excess_that_one_of_two_processes_meets_ends_both_saved(tmp_path: Path) -> None:
    spoilt = Spoilt(tmp_path)
    (tmp_path / "by_two.py").write_text(BY_TWO)
    whole = spoilt.cut.pop()
    shutil.copy(spoilt.whole / whole.relative_to(spoilt.root), whole)
    asked = [
        *arguments(spoilt.root, "holdout: 0.2", "max_unreadable: 0"),
        "training.seed=0",
        "training.epoch_images=32",
    ]
    result = run_two_processes(tmp_path / "by_two.py", *asked, "--out", str(spoilt.run))
    assert result.stdout.count("ended with 2") == 2
    (line,) = {line for line in result.stderr.splitlines() if line.startswith("pmae: ")}
    assert f"all are listed in {spoilt.run / 'unreadable.txt'}" in line
    assert Run(spoilt.run).step == 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on sound photos."""
    run = tmp_path_factory.mktemp("trained") / "run"
    root = photos(run.with_name("photos"))
    assert main([*arguments(root, "holdout: 0.2"), "training.epoch_images=8", "--out", str(run)]) == 0
    return run


@pytest.mark.parametrize("command", ["evaluate", "knn", slow("probe"), slow("finetune")])
def test_scoring_refuses_bad_headers_before_the_first_batch_and_lists_them(
    command: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    root = Path(shutil.copytree(trained.with_name("photos"), tmp_path / "photos"))
    test = ImageFolder("test", root=str(root), holdout=0.2)
    bad = [test.file_path(index) for index in (1, 5, 9)]
    for path in bad:
        path.write_text("no image")
    asked, listed = [command, str(run), f"data.root={root}"], run / "evaluation" / "unreadable.txt"
    with monkeypatch.context() as patch:
        patch.setattr(image_tree, "read_image", lambda *_: pytest.fail("an image was decoded"))
        assert main(asked) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "3 of 10 images cannot be read, more than 1%; fix them, or raise data.max_unreadable" in line
    assert line.endswith(f"; all are listed in {listed}")
    assert sorted(listed.read_text().splitlines()) == [f"{path}: no image of a known format" for path in sorted(bad)]
    assert not list(run.glob("evaluation/*.json"))
    if command in ("evaluate", "knn"):
        more = ["--metrics", "psnr"] if command == "evaluate" else ["--neighbours", "3"]
        assert main([*asked, "data.max_unreadable=0.5", *more]) == 0
        (report,) = run.glob("evaluation/*.json")
        counts = json.loads(report.read_text())
        assert (counts["num_images"] if command == "evaluate" else counts["test_images"]) == 7


def test_a_run_of_somebody_else_is_scored_without_a_list(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(trained.with_name("photos"), tmp_path / "photos"))
    ImageFolder("test", root=str(root), holdout=0.2).file_path(1).write_text("no image")

    def refused(path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(unreadable, "write_atomically", refused)
    out = tmp_path / "score.json"
    assert main(["evaluate", str(trained), f"data.root={root}", "--metrics", "psnr", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["num_images"] == 9


def test_the_dry_run_prints_both_scales(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments(photos(tmp_path / "photos")), "--dry-run"]) == 0
    assert (
        "crops of 32x32: in training 20 to 100 % of an image's area; of held-out images shorter side 37, then the "
        "centre (75 % of a square image)"
    ) in capsys.readouterr().out
    assert main(["pretrain", DEBUG, "mse", "data.crop=center", "--dry-run"]) == 0
    assert "in training the centre; of held-out images as large as covers it" in capsys.readouterr().out


@pytest.mark.slow
def test_scores_on_few_images_come_with_their_interval_and_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = photos(tmp_path / "photos"), tmp_path / "run"
    trained = [*arguments(root, "holdout: 0.25"), "evaluation.probe_images=48", "evaluation.limit=8"]
    assert main([*trained, "--out", str(run)]) == 0
    few = "probe and kNN while training: 8 test images tell little: the 95 % interval of 50.00 % is 21.5 to 78.5 %"
    assert f"{few}; raise evaluation.limit" in (run / "log.txt").read_text()
    capsys.readouterr()
    assert main(["knn", str(run), "--neighbours", "3"]) == 0
    warning = capsys.readouterr().err
    assert "12 test images tell little: the 95 % interval of " in warning
    assert "hold out more with data.holdout" in warning
    assert main(["knn", str(run), "--neighbours", "3", "--test-limit", "6"]) == 0
    warning = capsys.readouterr().err
    assert "6 test images tell little" in warning
    assert "raise --test-limit" in warning


@pytest.mark.slow
def test_a_picture_next_to_class_folders_is_named_where_labels_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = photos(tmp_path / "photos"), tmp_path / "run"
    Image.new("RGB", (40, 40)).save(root / "cover.png")
    assert main([*arguments(root, "holdout: 0.2"), "--out", str(run)]) == 0
    assert main(["knn", str(run)]) == 2
    assert f"carry no labels, for {root / 'cover.png'} is next to the class folders" in capsys.readouterr().err


@pytest.mark.slow
def test_pictures_of_the_users_own_have_the_limit_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = photos(tmp_path / "photos"), tmp_path / "run"
    assert main([*arguments(root, "max_pixels: 2000"), "--out", str(run)]) == 0
    Image.new("RGB", (60, 40)).save(tmp_path / "own.png")
    assert main(["visualize", str(run), str(tmp_path / "own.png")]) == 2
    assert "60 x 40 pixels are more than 2,000" in capsys.readouterr().err
