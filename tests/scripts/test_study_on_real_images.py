"""The smallest study from its command line to its pages, on CIFAR-10."""

import json
from pathlib import Path

import pytest
from PIL import Image

import conduct
import improved_mae
from starting import start
from studying import InProcess

NARROW = [
    *("generator.width=32", "generator.depth=2", "generator.heads=2"),
    *("generator.decoder_width=32", "generator.decoder_depth=1", "generator.decoder_heads=2", "data.workers=0"),
]
ARGUMENTS = ["--quick", "--seeds", "0", "--images", "128", "--labels", "128", "--test-images", "16"]
ARGUMENTS += ["--finetune-labels", "128"]


@pytest.mark.slow
@pytest.mark.data
def test_a_study_ends_in_its_tables_and_figures_and_a_second_call_only_prints_them(
    cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = InProcess()
    monkeypatch.setattr(conduct, "follow", cells)
    monkeypatch.setattr(conduct, "time", cells)
    out = tmp_path / "study"
    options = [option for key in NARROW for option in ("--set", key)]
    words = [*ARGUMENTS, *options, "--root", str(cifar10), "--out", str(out)]

    def study() -> int:
        form = improved_mae
        return start("improved_mae", "", form.QUICK, form.FULL, form.plan, form.report, words)

    assert study() == 0
    counts = {"pretrain": 3, "evaluate": 5, "probe": 3, "finetune": 4, "visualize": 2, "compare": 1}  # a trial each
    assert {name: cells.ran.count(name) for name in cells.ran} == counts
    printed = json.loads((out / "results.json").read_text())
    scores = {row["label"]: row["scores"] for row in printed["rows"]}
    for label in ("original", "improved"):
        assert {found["n"] for found in scores[label].values()} == {1}
        assert len(scores[label]) == 7
    assert (
        scores["original"]["evaluate.masked.high_frequency"]["mean"]
        != scores["improved"]["evaluate.masked.high_frequency"]["mean"]
    )
    page = (out / "results.md").read_text()
    assert "Less original, paired by seed" in page
    assert printed["cost"]["full"]["unknown"] == printed["cost"]["full"]["guessed"] == []
    with Image.open(out / "figures/grid.png") as grid, Image.open(out / "figures/grid_ratio_0.9.png") as harder:
        assert grid.size == harder.size
        assert grid.width < 5 * 100  # four columns of images magnified to 96 pixels
    capsys.readouterr()
    cells.ran = []
    assert study() == 0
    assert cells.ran == []
    assert capsys.readouterr().out.startswith(page[:200])
