"""A sweep's table and curves against hand-worked numbers, from summaries that are made up."""

import json
from pathlib import Path

import pytest
from PIL import Image

from conftest import debug_config
from perceptual_mae.errors import UserError
from perceptual_mae.sweep.folder import Planned
from perceptual_mae.sweep.grid import Axis, make_cells
from perceptual_mae.sweep.results import check_metrics, draw_curves, read_points, to_json, to_markdown

AXES = [Axis("optimizer.lr", ("1e-4", "1e-2")), Axis("masking.ratio", ("0.5", "0.75"))]
VALUES = {"1e-4": {"0.5": (10, 14), "0.75": (20, None)}, "1e-2": {"0.5": (1, 3), "0.75": (None, None)}}


@pytest.fixture
def planned(tmp_path: Path) -> list[Planned]:
    config, made = debug_config("mse"), []
    for cell in make_cells(AXES, [0, 1]):
        path = tmp_path / cell.name
        rate, ratio = cell.point.values()
        value = VALUES[rate][ratio][cell.seed or 0]
        if value is not None:
            path.mkdir()
            (path / "summary.json").write_text(json.dumps({"psnr_masked": value, "losses": {"mse": 0.1}}))
        made.append(Planned(cell, [], config, path, "finished"))
    return made


def test_the_table_has_mean_and_sample_std_over_seeds(planned: list[Planned]) -> None:
    points = read_points(planned, ["psnr_masked", "losses.mse"])
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in to_markdown(points, ["psnr_masked"]).splitlines()
    ]
    assert rows[0] == ["optimizer.lr", "masking.ratio", "psnr_masked", "n", "not finished"]
    assert rows[2:] == [
        ["1e-4", "0.5", "12 ± 2.8", "2", ""],  # (4 + 4) / 1
        ["1e-4", "0.75", "20", "1", "lr-1e-4_ratio-0.75_seed-1"],
        ["1e-2", "0.5", "2 ± 1.4", "2", ""],
        ["1e-2", "0.75", "-", "0", "lr-1e-2_ratio-0.75_seed-0, lr-1e-2_ratio-0.75_seed-1"],
    ]
    found = to_json(points)[0]["scores"]["psnr_masked"]
    assert (found["mean"], found["deviation"], found["n"]) == (12, pytest.approx(8**0.5), 2)
    assert to_json(points)[0]["scores"]["losses.mse"]["mean"] == pytest.approx(0.1)


@pytest.mark.parametrize("first", [("1e-4", "1e-2"), ("a", "b$")])
def test_curves_are_drawn_over_numbers_and_words(
    first: tuple[str, str], planned: list[Planned], tmp_path: Path
) -> None:
    points = read_points(planned, ["psnr_masked"])
    names = dict(zip(VALUES, first, strict=True))
    for point in points:
        point.values["optimizer.lr"] = names[point.values["optimizer.lr"]]
    draw_curves(points, [Axis("optimizer.lr", first), AXES[1]], ["psnr_masked"], tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as figure:
        assert figure.format == "PNG"


def test_an_unknown_metric_is_refused_with_the_one_that_was_meant() -> None:
    summary = {"psnr_masked": None, "split": "test", "losses": {"mse": 0.1}}
    check_metrics(summary, ["psnr_masked", "losses.mse", "losses.l1"])  # another cell's method may have an l1
    with pytest.raises(UserError, match=r"no number 'psnr_maskd' \(did you mean 'psnr_masked'\?\)"):
        check_metrics(summary, ["psnr_maskd"])
    with pytest.raises(UserError, match="no number 'split'"):
        check_metrics(summary, ["split"])


def test_a_sweep_of_which_nothing_is_finished_has_a_table_and_an_empty_curve(tmp_path: Path) -> None:
    config = debug_config("mse")
    planned = [Planned(cell, [], config, tmp_path / cell.name, "new") for cell in make_cells(AXES, [])]
    points = read_points(planned, ["psnr_masked"])
    rows = to_markdown(points, ["psnr_masked"]).splitlines()[2:]
    assert [row.split("|")[3].strip() for row in rows] == ["-"] * 4
    draw_curves(points, AXES, ["psnr_masked"], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").exists()
