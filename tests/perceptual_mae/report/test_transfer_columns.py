"""Scores of dense transfer in the comparison."""

from pathlib import Path
from typing import Any

import pytest

from perceptual_mae import UserError
from perceptual_mae.report.comparison import compare
from run_folders import make_run

TITLE = "Dense transfer: a head trained on boxes, masks or pixels"


def segment(miou: float, recipe: str = "ade20k", **facts: Any) -> dict[str, Any]:
    scores = {
        name: {"mean": value, "deviation": None, "by_seed": [value]} for name, value in (("miou", miou), ("aacc", 0.8))
    }
    return {
        "kind": "segment",
        "recipe": {"name": recipe},
        "from_scratch": False,
        "frozen": False,
        "scores": scores,
        **facts,
    }


def rows_of(*runs: Path) -> dict[str, dict[str, str]]:
    (table,) = [table for table in compare(runs, title="t").tables if table.title == TITLE]
    return {row.label: dict(zip(table.header[1:], row.cells, strict=True)) for row in table.rows}


def test_miou_stands_next_to_the_papers_on_ade20k_alone(tmp_path: Path) -> None:
    scores = {
        "segment_ade20k": segment(0.481),
        "segment_ade20k_scratch": segment(0.2, from_scratch=True),
        "segment_camvid": segment(0.5, "camvid"),
    }
    rows = rows_of(make_run(tmp_path / "a", "ls_gan_p", scores=scores))
    assert rows["LS-GAN-P"]["mIoU, % (ade20k)"] == "48.10"
    assert rows["LS-GAN-P"]["mIoU, % (ade20k scratch)"] == "20.00"
    assert rows["LS-GAN-P"]["aAcc, % (camvid)"] == "80.00"
    published = rows["paper: LS-GAN-P"]
    assert published["mIoU, % (ade20k)"] == "49.2"
    assert {value for name, value in published.items() if name not in ("n", "mIoU, % (ade20k)")} == {"-"}


def test_boxes_and_masks_have_columns_as_well(tmp_path: Path) -> None:
    scores = {"box_ap": {"mean": 0.504}, "mask_ap": {"mean": 0.449}}
    report = {"kind": "detect", "recipe": {"name": "coco_mimdet"}, "scores": scores}
    rows = rows_of(make_run(tmp_path / "a", scores={"detect_coco_mimdet": report}))
    assert rows["MSE"]["box AP, % (coco mimdet)"] == "50.40"
    assert rows["paper: MSE"]["mask AP, % (coco mimdet)"] == "44.9"


def test_runs_without_such_scores_have_no_such_table(tmp_path: Path) -> None:
    tables = compare([make_run(tmp_path / "a")], title="t").tables
    assert TITLE not in [table.title for table in tables]


def test_scores_of_other_recipes_do_not_compare(tmp_path: Path) -> None:
    other = segment(0.4, frozen=True)
    runs = [
        make_run(tmp_path / "a", scores={"segment_ade20k": segment(0.5)}),
        make_run(tmp_path / "b", "l1", scores={"segment_ade20k": other}),
    ]
    with pytest.raises(UserError, match=r"evaluation/segment_ade20k\.json, frozen: False \(a\), True \(b\)"):
        compare(runs, title="t")
