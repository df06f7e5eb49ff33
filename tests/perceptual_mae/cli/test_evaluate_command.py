"""`pmae evaluate`: what a person types, what stands in the files, and what comes of mistakes."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from conftest import DEBUG, debug_config
from perceptual_mae import Run
from perceptual_mae.cli import main
from perceptual_mae.evaluation.metrics import METRICS
from perceptual_mae.evaluation.metrics import lpips as lpips_metric
from perceptual_mae.evaluation.reconstruction.evaluate import learns_visible_pixels
from perceptual_mae.evaluation.representation.features import fingerprint_of
from perceptual_mae.loss_networks.lpips import lpips_trunk
from processes import run_two_processes

PRETRAIN = ["pretrain", DEBUG, "mse", "data.num_images=300", "training.ema_kimg=0.01", "evaluation.limit=1000"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    assert main([*PRETRAIN, "--out", str(path)]) == 0
    return path


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nobody's weights but those that a test puts there."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def evaluate(run: Path, *arguments: str, name: str = "evaluate") -> dict[str, Any]:
    assert main(["evaluate", str(run), *arguments]) == 0
    report: dict[str, Any] = json.loads((run / "evaluation" / f"{name}.json").read_text())
    return report


def lines_of(path: Path) -> dict[int, dict[str, str]]:
    with path.open() as file:
        return {int(row["index"]): row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_without_weights_it_finishes_and_says_what_is_unavailable(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = evaluate(run)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("run, step 8 (averaged weights): generator ")
    assert printed[0].endswith("test images, 32x32; random masks, ratio 0.75, mask seed 0")
    assert list(report["scores"]) == ["raw", "composite", "masked"]
    assert {"ms_ssim", "lpips_alex", "lpips_vgg", "lpips_squeeze"} <= set(report["unavailable"])
    assert report["unavailable"]["lpips_vgg"].endswith("pmae weights fetch vgg16")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed[2:]]
    assert cells[0] == ["", "raw", "composite", "masked"]
    assert ["LPIPS, VGG", "unavailable", "unavailable", "unavailable"] in cells
    psnr = next(row for row in cells if row and row[0] == "PSNR, dB")
    assert psnr[1:] == [f"{report['scores'][subject]['psnr']:.2f}" for subject in ("raw", "composite", "masked")]
    assert "raw means little here: the run's loss never compared visible pixels" in printed
    assert printed[-1].startswith(f"written to {run / 'evaluation'}: evaluate.json, evaluate.png")


def test_a_report_says_what_it_stands_on(run: Path) -> None:
    report = evaluate(run, "--no-ema", "--ratio", "0.5", "--seed", "3", name="evaluate_no_ema_ratio_0.5_seed_3")
    opened = Run(run)
    assert (report["kind"], report["run"], report["step"], report["ema"]) == ("evaluate", "run", 8, False)
    assert report["generator_sha256"] == fingerprint_of(opened.generator(ema=False).state_dict())
    assert report["generator_sha256"] != fingerprint_of(opened.generator(ema=True).state_dict())
    assert (report["data"], report["split"], report["precision"]) == ("shapes", "test", "no")
    assert report["num_images"] == len(opened.config.data.build("test"))
    assert report["transform"] == {"image_size": [32, 32], "resize": None, "crop": "center"}
    mask = {"kind": "random", "options": {}, "ratio": 0.5, "seed": 3, "grid": [4, 4], "hidden_patches": 8}
    assert report["mask"] == mask
    assert report["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert report["learns_visible_pixels"] is False


@pytest.mark.slow
def test_scores_agree_with_those_that_training_ended_with(run: Path) -> None:
    report, summary = evaluate(run, "--baselines"), Run(run).summary()
    assert summary is not None
    assert summary["num_images"] == report["num_images"]
    for subject, found, printed in (
        ("this run", report["scores"], summary),
        *((name, found, summary["baselines"][name]) for name, found in report["baselines"].items()),
    ):
        assert found["composite"]["psnr"] == pytest.approx(printed["psnr"], abs=1e-3), subject
        assert found["masked"]["psnr"] == pytest.approx(printed["psnr_masked"], abs=1e-3), subject
        assert found["masked"]["psnr_pooled"] == pytest.approx(printed["psnr_masked_pooled"], abs=1e-3), subject
        assert found["composite"]["ssim"] == pytest.approx(printed["ssim"], abs=1e-4), subject


def test_lines_and_pictures_are_written_next_to_the_report(run: Path) -> None:
    report = evaluate(run, "--metrics", "psnr,l1", name="evaluate_metrics_psnr+l1")
    lines = lines_of(run / "evaluation" / report["per_image"])
    assert len(lines) == report["num_images"] > 20
    assert list(report["scores"]["raw"]) == ["l1", "psnr", "psnr_pooled", "psnr_identical_images"]
    columns = [f"{subject}_{name}" for subject in ("raw", "composite", "masked") for name in ("l1", "psnr")]
    assert list(lines[0]) == ["index", "file", *columns]
    mean = sum(float(line["masked_psnr"]) for line in lines.values()) / len(lines)
    assert mean == pytest.approx(report["scores"]["masked"]["psnr"], rel=1e-4)
    with Image.open(run / "evaluation" / report["pictures"]) as page:
        assert page.height == 20 * (96 + 4) + 4 + 16


def test_a_limit_scores_some_of_the_same_images_and_batches_change_nothing(run: Path) -> None:
    evaluate(run, "--metrics", "cheap", name="evaluate_metrics_cheap")
    whole = lines_of(run / "evaluation" / "evaluate_metrics_cheap.csv")
    evaluate(run, "--metrics", "cheap", "--limit", "5", "--batch-size", "2", name="evaluate_5_metrics_cheap")
    part = lines_of(run / "evaluation" / "evaluate_5_metrics_cheap.csv")
    assert len(part) == 5
    for index, line in part.items():
        for column, value in line.items():
            if column not in ("index", "file"):
                assert float(value) == pytest.approx(float(whole[index][column]), rel=1e-3, abs=1e-5)


def test_a_folder_without_labels_is_scored_with_its_files_names(run: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(6):
        Image.effect_noise((40, 48), 10.0 * number).convert("RGB").save(photos / f"{number}.png")
    report = evaluate(run, "--data", str(photos), name="evaluate_photos")
    assert report["num_images"] == 6
    lines = lines_of(run / "evaluation" / "evaluate_photos.csv")
    assert [line["file"] for line in lines.values()] == [f"{number}.png" for number in range(6)]


@pytest.mark.slow
def test_lpips_is_computed_where_its_weights_are_at_hand(
    run: Path, no_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    trunk = lpips_trunk((32, 32), 3, net="squeeze", weights="random").network.state_dict()
    no_weights.mkdir(parents=True)
    path = no_weights / "squeezenet1_1-b8a52dc0.pth"
    torch.save({f"features.{name.partition('.')[2]}": value for name, value in trunk.items()}, path)
    arguments = ["evaluate", str(run), "--require", "lpips_squeeze"]
    assert main(arguments) == 2  # another file than the published one
    monkeypatch.setitem(lpips_metric.SHA256, "squeezenet1_1", None)
    assert main(arguments) == 0
    report = json.loads((run / "evaluation" / "evaluate.json").read_text())
    assert 0 < report["scores"]["composite"]["lpips_squeeze"] < report["scores"]["raw"]["lpips_squeeze"]
    assert "lpips_squeeze" not in report["unavailable"]
    assert report["networks"]["squeezenet1_1"]["file"] == path.name
    assert report["versions"]["lpips"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--require", "lpips_alex"], "--require: lpips_alex the weights of alexnet are not installed"),
        (["--require", "ms_ssim"], "ms_ssim needs images of at least 161 pixels"),
        (["--require", "fdi"], "--require: there is no 'fdi'"),
        (["--metrics", "l1,pnsr"], "there is no 'pnsr' (did you mean 'psnr'?)"),
        (["--mask", "blok"], "--mask: unknown masking 'blok'"),
        (["--ratio", "0.99"], "leaves none of 16 patches visible; use at most 0.9375"),
        (["--out", "{run}"], "is no file that ends in .json"),
        (["--data", "cifar11"], "did you mean 'cifar10'?"),
        (["training.epochs=3"], "only keys of the data"),
    ],
)
def test_a_mistake_is_exit_two_one_line_and_nothing_written(
    arguments: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.rglob("*"))
    capsys.readouterr()
    assert main(["evaluate", str(run), *(argument.format(run=run) for argument in arguments)]) == 2
    printed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pmae: ")]
    assert len(printed) == 1
    assert message in printed[0]
    assert sorted(run.rglob("*")) == before


def test_a_required_score_is_looked_for_before_the_pass(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the pass began")

    monkeypatch.setattr("perceptual_mae.evaluation.reconstruction.scoring.reconstruct_images", never)
    assert main(["evaluate", str(run), "--require", "lpips_vgg"]) == 2
    assert main(["evaluate", str(run), "--require", "ssim"]) == 1


@pytest.mark.parametrize(
    ("arguments", "learns"),
    [
        (["mse"], False),
        (["mse", "losses.mse.region=all"], True),
        (["mse", "losses.uniformity=0.1"], False),
        (["mse", "losses.high_frequency=1.0"], False),
        (["ls_gan_p"], True),
    ],
)
def test_a_report_knows_whether_the_loss_ever_saw_visible_pixels(arguments: list[str], learns: bool) -> None:
    assert learns_visible_pixels(debug_config(*arguments)) is learns


@pytest.mark.parametrize("kind", ["grid", "block"])
def test_other_kinds_of_masks_go_to_a_file_of_their_own(run: Path, kind: str) -> None:
    report = evaluate(run, "--metrics", "l1", "--mask", kind, name=f"evaluate_mask_{kind}_metrics_l1")
    assert (report["mask"]["kind"], report["mask"]["hidden_patches"]) == (kind, 12)


def test_every_metric_has_a_label() -> None:
    from perceptual_mae.cli.score_tables import LABELS

    assert set(METRICS) <= set(LABELS)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(run: Path, tmp_path: Path) -> None:
    one = evaluate(run, "--metrics", "cheap", "--baselines", name="evaluate_metrics_cheap")
    out = tmp_path / "both.json"
    arguments = ["evaluate", str(run), "--metrics", "cheap", "--baselines", "--out", str(out)]
    run_two_processes("-m", "perceptual_mae.cli", *arguments)
    both = json.loads(out.read_text())
    assert both["scores"] == one["scores"]
    assert both["baselines"] == one["baselines"]
    assert both["num_images"] == one["num_images"]
    lines = run / "evaluation" / "evaluate_metrics_cheap.csv"
    assert (tmp_path / "both.csv").read_bytes() == lines.read_bytes()
    assert (tmp_path / "both.png").read_bytes() == lines.with_suffix(".png").read_bytes()
