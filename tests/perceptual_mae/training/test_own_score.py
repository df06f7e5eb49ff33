"""What a run says of itself is what `pmae evaluate` says of it."""

from typing import Any

import pytest

from conftest import debug_config
from perceptual_mae import Run, pretrain
from perceptual_mae.evaluation.open_run import make_accelerator
from perceptual_mae.evaluation.reconstruction.data import open_held_out
from perceptual_mae.evaluation.reconstruction.evaluate import evaluate_run


@pytest.fixture(scope="module")
def summary_and_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Run]:
    path = tmp_path_factory.mktemp("runs") / "averaged"
    summary = pretrain(debug_config("mse", "training.ema_kimg=0.02", "training.epochs=4"), path, quiet=True)
    return summary, Run(path)


def scores_of(run: Run, **options: Any) -> dict[str, Any]:
    limit = run.config.evaluation.limit
    data = open_held_out(run.config, limit=limit)
    report: dict[str, Any] = evaluate_run(run, data, make_accelerator(run.config), **options).report
    return report


def test_a_summary_has_the_very_numbers_of_evaluate(summary_and_run: tuple[dict[str, Any], Run]) -> None:
    summary, run = summary_and_run
    report = scores_of(run, metrics="psnr,ssim", baselines=True)
    places = {"psnr": "composite", "psnr_raw": "raw", "psnr_masked": "masked", "ssim": "composite", "ssim_raw": "raw"}
    for key, region in places.items():
        name = key.partition("_")[0]
        assert summary[key] == report["scores"][region][name], key
    assert summary["psnr_pooled"] == report["scores"]["composite"]["psnr_pooled"]
    assert summary["psnr_masked_pooled"] == report["scores"]["masked"]["psnr_pooled"]
    assert summary["num_images"] == report["num_images"]
    assert list(summary["baselines"]) == list(report["baselines"])
    for name, scores in summary["baselines"].items():
        assert scores["psnr_masked"] == report["baselines"][name]["masked"]["psnr"], name


def test_a_run_that_keeps_averaged_weights_scores_itself_by_them(summary_and_run: tuple[dict[str, Any], Run]) -> None:
    summary, run = summary_and_run
    averaged, last = (scores_of(run, metrics="psnr", ema=ema)["scores"]["masked"]["psnr"] for ema in (True, False))
    assert summary["psnr_masked"] == averaged != last
