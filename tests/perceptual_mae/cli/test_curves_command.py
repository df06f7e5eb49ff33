"""`pmae curves` draws what runs have logged."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import debug_config
from perceptual_mae.cli import curves, main
from perceptual_mae.run.run import Run
from perceptual_mae.training.loop import pretrain


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("curves") / "a" / "run"
    pretrain(debug_config("mse", "training.epoch_images=16", "evaluation.limit=4"), path, quiet=True)
    return path


def call(*words: str | Path) -> int:
    return main(["curves", *map(str, words)])


def test_runs_of_the_same_name_have_a_line_each(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(finished, tmp_path / "b" / "run"))
    drawn: list[str] = []
    monkeypatch.setattr(curves, "draw", lambda runs, keys, out: drawn.extend(runs))
    assert call(finished, other) == 0
    assert drawn == ["a/run", "b/run"]


def test_a_key_that_no_run_has_logged_is_reported_with_the_one_that_was_meant(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "curves.png"
    assert call(finished, "--key", "raw.mse", "--key", "evaluation.psnr_maskd", "--out", out) == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert "evaluation.psnr_maskd" in printed
    assert "did you mean 'evaluation.psnr_masked'?" in printed
    assert not out.exists()


def test_default_panels_that_no_run_has_logged_are_left_out(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(curves, "draw", lambda runs, keys, out: drawn.extend(keys))
    assert call(finished) == 0
    assert drawn == ["evaluation.psnr_masked"]  # mse has neither L1 nor a discriminator


def test_a_folder_that_is_no_run_is_exit_two_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path) == 2
    assert "is not a run folder" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_a_figure_shows_what_each_run_logged_over_the_images_it_saw(tmp_path: Path) -> None:
    runs = {}
    for method in ("mse", "msg_gan_p"):
        config = debug_config(method, "training.epoch_images=16", "evaluation.limit=4")
        pretrain(config, tmp_path / method, quiet=True)
        runs[method] = Run(tmp_path / method)
    records = [json.loads(line) for line in (tmp_path / "msg_gan_p/metrics.jsonl").read_text().splitlines()]
    shares = [record["gradient_share"]["decoder"]["l1"] for record in records if "gradient_share" in record]
    seen, values = curves.series(runs["msg_gan_p"], "gradient_share.decoder.l1")
    assert values == shares
    assert seen == [record["step"] * 8 / 1000 for record in records if "gradient_share" in record]
    assert curves.series(runs["mse"], "gradient_share.decoder.l1") == ([], [])
    curves.draw(runs, ["evaluation.psnr_masked", "raw.l1"], tmp_path / "figures/curves.png")
    with Image.open(tmp_path / "figures/curves.png") as figure:
        assert figure.width > figure.height


@pytest.mark.parametrize("panels", [1, 3])
def test_a_legend_of_long_names_stays_inside_the_figure(
    panels: int, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr("perceptual_mae.visualization.figures.save_figure", lambda figure, out: figures.append(figure))
    runs = {f"orders_WWW_gan_p_sequential_{number}": Run(finished) for number in range(8)}
    curves.draw(runs, ["raw.mse", "total", "variety"][:panels], tmp_path / "curves.png")
    (figure,) = figures
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 8
    box = legend.get_window_extent()
    assert 0 <= box.x0 <= box.x1 <= figure.bbox.width
    assert 0 <= box.y0 <= box.y1 <= figure.bbox.height
    assert all(panel.get_window_extent().height > 0.4 * figure.bbox.height for panel in figure.axes)
