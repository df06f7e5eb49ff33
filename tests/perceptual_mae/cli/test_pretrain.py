"""`pmae pretrain` and `pmae visualize`: what a person types, and what comes of mistakes."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from conftest import DEBUG
from perceptual_mae import Run
from perceptual_mae.cli import main
from perceptual_mae.errors import UserError
from perceptual_mae.run.signals import Interrupted

DEBUG_RUN = ["pretrain", DEBUG, "mse", "training.epochs=1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    assert main([*DEBUG_RUN, "--out", str(path)]) == 0
    return path


def bad_input(tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    (tmp_path / "empty").mkdir()
    (tmp_path / "somebodys").mkdir()
    (tmp_path / "somebodys" / "thesis.tex").write_text("precious")
    (tmp_path / "broken.yaml").write_text("training: {epochs: 3\n")
    flat = ["image_folder", "generator.size=tiny"]
    return {
        "unknown key": ([DEBUG, "training.epoch=3"], "training.epoch: unknown key"),
        "wrong type": ([DEBUG, "training.epochs=many"], "training.epochs: found 'many'"),
        "unknown layer": (["quickstrat"], "did you mean 'quickstart'?"),
        "broken YAML": ([str(tmp_path / "broken.yaml")], "broken.yaml"),
        "unreachable data": (["cifar10", "data.root=/nowhere"], "data.root: /nowhere"),
        "empty folder": ([*flat, f"data.root={tmp_path / 'empty'}"], "no image below"),
        "image size and patch": ([DEBUG, "data.image_size=36"], "not a multiple of patch"),
        "norm_pix with images": ([DEBUG, "ls_gan_p", "generator.norm_pix=true"], "generator.norm_pix"),
        "adversarial alone": ([DEBUG, "discriminator=null"], "needs a discriminator"),
        "options at odds": (
            [DEBUG, "ls_gan_p", "losses.adversarial.kind=hinge", "losses.adversarial.half=real_only"],
            "real_only",
        ),
        "batch and micro-batches": ([DEBUG, "training.accumulation=3"], "training.accumulation"),
        "warm-up too long": (
            [DEBUG, "schedule.warmup_ratio=null", "schedule.warmup_epochs=9"],
            "schedule.warmup_epochs",
        ),
        "too few images": ([DEBUG, "training.epoch_images=null", "training.batch_size=512"], "512"),
        "somebody's folder": ([DEBUG, "--out", str(tmp_path / "somebodys")], "holds files that are not a run's"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "unknown key",
        "wrong type",
        "unknown layer",
        "broken YAML",
        "unreachable data",
        "empty folder",
        "image size and patch",
        "norm_pix with images",
        "adversarial alone",
        "options at odds",
        "batch and micro-batches",
        "warm-up too long",
        "too few images",
        "somebody's folder",
    ],
)
def test_a_mistake_is_exit_two_one_line_each_and_nothing_written(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = bad_input(tmp_path)[case]
    before = sorted(tmp_path.rglob("*"))
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "run")]
    assert main(["pretrain", *arguments, *out]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert all(line.startswith("pmae: ") for line in printed.splitlines())
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    few = "data.num_images=64"  # they are drawn
    assert main(["pretrain", "quickstart", few, "training.epochs=2", "--out", str(out), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for fact in ("generator: 1,040,752 parameters", "discriminator: 168,033 parameters", "steps: 156 = 2 epochs x 78"):
        assert fact in printed
    assert "effective batch: 64 images" in printed
    assert "learning rate: 0.002" in printed
    assert "waiting for the host" not in printed
    assert not out.exists()


@pytest.mark.slow
def test_a_dry_run_says_that_a_gpu_would_wait_in_steps_of_few_large_images(capsys: pytest.CaptureFixture[str]) -> None:
    for recipe, waits in (("imagenet", True), ("imagenet_fast", False)):
        assert main(["pretrain", recipe, "mse", "--dry-run"]) == 0
        assert ("steps of 16 images leave a GPU waiting" in capsys.readouterr().out) == waits


def test_a_run_prints_where_it_is_and_its_scores_with_the_baselines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*DEBUG_RUN, "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().err
    for word in (
        "this run",
        "mean color",
        "nearest patch",
        "inverse distance",
        str(tmp_path / "run"),
        "images/s",
        "left",
    ):
        assert word in printed


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (Interrupted("stopped and saved after step 3"), 130, "stopped and saved after step 3"),
        (KeyboardInterrupt(), 130, ""),
        (UserError("out of memory: try a smaller batch"), 2, "pmae: out of memory: try a smaller batch"),
    ],
)
def test_the_exit_code_separates_an_interrupted_run_from_a_mistake(
    failure: BaseException,
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def pretrain(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr("perceptual_mae.training.loop.pretrain", pretrain)
    assert main([*DEBUG_RUN, "--out", str(tmp_path / "run")]) == code
    assert capsys.readouterr().err.strip() == message


@pytest.mark.parametrize(("options", "fresh"), [([], False), (["--fresh"], True)])
def test_the_folder_and_the_wish_to_start_over_reach_the_run(
    options: list[str], fresh: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Path, bool]] = []
    monkeypatch.setattr(
        "perceptual_mae.training.loop.pretrain", lambda config, out, *, fresh, branch: calls.append((out, fresh))
    )
    assert main([*DEBUG_RUN, "--out", str(tmp_path / "run"), *options]) == 0
    assert calls == [(tmp_path / "run", fresh)]


def test_a_changed_run_may_not_be_resumed(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DEBUG_RUN, "optimizer.lr=5e-4", "--out", str(finished)]) == 2
    assert "optimizer.lr" in capsys.readouterr().err


def test_visualize_draws_held_out_images(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    assert main(["visualize", str(finished), "--out", str(out), "--count", "3"]) == 0
    with Image.open(out) as page:
        assert page.width == 4 + 4 * 100  # four columns of 96 pixels
        assert page.height == 4 + 16 + 3 * 100


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose images have twice the patches a side."""
    folder = tmp_path_factory.mktemp("runs") / "smaller"
    steps = ("training.epochs=1", "training.epoch_images=8", "evaluation.every=0")
    assert main(["pretrain", DEBUG, "mse", "generator.patch_size=4", *steps, "--out", str(folder)]) == 0
    return folder


def test_runs_are_drawn_side_by_side_on_the_same_images_and_masks(finished: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(finished, copied)
    out = tmp_path / "sheet.png"
    options = ["--view", "composite", "--out", str(out), "--count", "2"]
    assert main(["visualize", str(finished), "--beside", str(copied), *options]) == 0
    with Image.open(out) as page:
        assert page.width == 4 + 4 * 100  # original, masked, and one column a run
        columns = [page.crop((4 + 100 * number, 20, 100 + 100 * number, page.height)) for number in range(4)]
    assert columns[2].tobytes() == columns[3].tobytes() != columns[0].tobytes()


def test_runs_of_other_patches_are_not_drawn_side_by_side(
    finished: Path, smaller: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["visualize", str(finished), "--beside", str(smaller), "--out", str(tmp_path / "sheet.png")]) == 2
    printed = capsys.readouterr().err
    assert "8x8 patches" in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "sheet.png").exists()


def test_visualize_takes_photographs_of_any_size_at_any_ratio(finished: Path, tmp_path: Path) -> None:
    Image.effect_noise((120, 70), 50).convert("RGB").save(tmp_path / "photo.jpg")
    out = tmp_path / "sheet.png"
    photo = str(tmp_path / "photo.jpg")
    for ratio in ("0", "0.9"):
        assert main(["visualize", str(finished), photo, photo, "--out", str(out), "--ratio", ratio]) == 0
    assert out.exists()


def test_visualize_says_what_is_wrong(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "no_run").mkdir()
    for run, images, message in (
        (tmp_path / "absent", [], "does not exist"),
        (tmp_path / "no_run", [], "not a run folder"),
        (finished, [str(tmp_path / "text.png")], "text.png"),
    ):
        assert main(["visualize", str(run), *images, "--out", str(tmp_path / "out.png")]) == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.count("\n") == 1
    assert not (tmp_path / "out.png").exists()


def test_a_checkpoint_of_another_architecture_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("decoder_depth: 4", "decoder_depth: 3"))
    assert main(["visualize", str(other), "--out", str(tmp_path / "out.png")]) == 2
    printed = capsys.readouterr().err
    assert "another architecture" in printed
    assert printed.count("\n") == 1


def test_summary_holds_scores_and_baselines(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert {"psnr", "ssim", "psnr_masked", "baselines"} <= summary.keys()
    assert Run(finished).step == summary["steps"] == 4
