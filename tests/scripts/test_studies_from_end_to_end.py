"""Each study from its command line to its pages, at debug size on drawn shapes."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

import art_mae
import conduct
import improved_mae
import kth_mae
import mae_ablations
from conftest import DEBUG
from starting import start
from studying import BATCH, InProcess

LITTLE = ["--images", "0", "--seeds", "0", "--epochs", "1", "--test-images", "8"]
LABELS = ["--layer", DEBUG, "--labels", "32"]
TUNED = ["--set", "data.num_images=160", "--finetune-labels", "128", "--finetune-epochs", "1"]  # one batch
TEACHER = "{kind: vgg16, weights: random}"


def run(study: ModuleType, words: Sequence[str], out: Path) -> dict[str, set[str]]:
    """Run a study; return the headings of the scores of each row."""
    given = [*words, "--set", BATCH, "--set", "data.workers=0", "--out", str(out)]
    name = study.__name__
    assert start(name, "", study.QUICK, study.FULL, study.plan, study.report, given) == 0
    reported = json.loads((out / "results.json").read_text())
    assert reported["failed"] == []
    assert all((out / figure).exists() for figure in reported["figures"])
    assert len(reported["figures"]) >= 3
    return {row["label"]: {found["heading"] for found in row["scores"].values()} for row in reported["rows"]}


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conduct, "follow", InProcess())
    monkeypatch.setattr(kth_mae, "recipe", lambda size: DEBUG)
    monkeypatch.setattr(art_mae, "recipe", lambda model: DEBUG)


@pytest.mark.exhaustive
def test_improved_mae_with_a_warm_start(tmp_path: Path) -> None:
    words = [*LITTLE, *LABELS, *TUNED, "--warm-start", "1"]
    scores = run(improved_mae, words, tmp_path)
    assert list(scores) == ["original", "improved", "improved, warm"]
    assert {"FT", "LP, mean pool", "hidden HF error, ratio 0.9"} <= scores["improved, warm"]
    config = (tmp_path / "runs/warm_mae_s0/config.yaml").read_text()
    assert "original_mae_s0" in config


@pytest.mark.exhaustive
def test_ablations_of_every_group(tmp_path: Path) -> None:
    rows = ["features of a teacher", "grid", "block", "cross-attention decoder", "layer scale"]
    words = [*LITTLE, *LABELS, *TUNED, "--rows", ",".join(rows), "--teacher", TEACHER]
    scores = run(mae_ablations, words, tmp_path)
    assert list(scores) == ["MAE", *rows]
    assert all(found >= {"hidden PSNR, dB", "LP, class token", "FT"} for found in scores.values())
    page = (tmp_path / "results.md").read_text()
    assert "## Less grid, paired by seed" in page
    assert "no row 'features of a teacher'" not in page


@pytest.mark.exhaustive
def test_kth_mae_of_two_sizes_and_masks(tmp_path: Path) -> None:
    words = [*LITTLE, "--labels", "32", "--masks", "random,grid", "--ratios", "0.5,0.75", "--head-epochs", "2"]
    scores = run(kth_mae, words, tmp_path)
    assert len(scores) == 6
    page = (tmp_path / "results.md").read_text()
    for base in ("small, random", "medium, random"):
        assert f"## Less {base}, paired by seed" in page
    assert (tmp_path / "figures/accuracy_by_ratio.png").exists()


@pytest.mark.exhaustive
def test_art_mae_of_three_models_and_its_sweep(tmp_path: Path) -> None:
    words = [*LITTLE, "--ratios", "0.5,0.75", "--patches", "4,8"]
    scores = run(art_mae, words, tmp_path)
    assert len(scores) == 3 + 4
    assert all("SSIM of the composite" in found for found in scores.values())
    assert (tmp_path / "sweep/curve.png").exists()
