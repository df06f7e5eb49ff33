"""What a study reads from planted result files: tables, differences paired by seed, the pages it writes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import improved_mae
import kth_mae
from costs import Extrapolation
from findings import Cost, column, pair_by_seed, read_rows
from perceptual_mae.report.tables import Table
from run_folders import make_run
from study import Study, Trained
from studying import SMALL

HF, PSNR = "masked.high_frequency", "masked.psnr"


def accuracy(value: float) -> dict[str, float]:
    return {"accuracy": value}


def plant(path: Path, seed: int, *, error: float, psnr: float, lp: float, ft: float) -> None:
    """A finished run with the scores of the study of improved MAE."""
    masked = {"high_frequency": error, "psnr": psnr}
    probed = {"encoder": {"class": accuracy(lp), "mean": accuracy(lp + 0.1)}, "raw pixels": {"pixels": accuracy(0.3)}}
    reports = {
        "evaluate": {"kind": "evaluate", "unavailable": {}, "scores": {"masked": masked}},
        "evaluate_ratio_0.9": {"kind": "evaluate", "unavailable": {}, "scores": {"masked": {"high_frequency": 0.2}}},
        "probe_cached": {"protocol": "cached", "scores": probed},
        "finetune_small": {"kind": "finetune", "scores": {"top1": accuracy(ft)}},
    }
    make_run(path, f"training.seed={seed}", scores=reports)


@pytest.fixture
def planted(tmp_path: Path) -> Study:
    """Three seeds: errors .030 .032 .034 and .029 .030 .031, FT 40 42 44 and 41 44 43 %."""
    study = improved_mae.plan(replace(SMALL, seeds=(0, 1, 2)), tmp_path / "study", ["training.batch_size=8"])
    for seed in (0, 1, 2):
        first, second = (study.rows[label][seed].path for label in improved_mae.METHODS)
        plant(first, seed, error=0.030 + 0.002 * seed, psnr=16, lp=0.4, ft=0.40 + 0.02 * seed)
        plant(second, seed, error=0.029 + 0.001 * seed, psnr=16.5, lp=0.4, ft=(0.41, 0.44, 0.43)[seed])
    return study


def cells(table: Table, row: str) -> dict[str, str]:
    (found,) = [each for each in table.rows if each.label == row]
    return dict(zip(table.header[1:], found.cells, strict=True))


def test_a_table_has_means_and_sample_stds_over_seeds(planted: Study) -> None:
    findings = improved_mae.report(planted, SMALL)
    original = cells(findings.tables[0], "original")
    assert (original["n"], original["hidden HF error"], original["FT"]) == ("3", "0.0320 ± 0.0020", "42.00 ± 2.00")
    assert original["hidden HF error, ratio 0.9"] == "0.2000 ± 0.0000"
    assert original["LP, mean pool"] == "50.00 ± 0.00"
    beside = cells(findings.tables[2], "original")
    assert beside["LP of raw pixels"] == "30.00 ± 0.00"
    assert beside["FT from scratch"] == "-"
    assert any("pmae finetune" in note for note in findings.tables[2].notes)


def test_differences_are_paired_by_seed_and_tested_by_students_interval(planted: Study) -> None:
    table = improved_mae.report(planted, SMALL).tables[1]
    reported = cells(table, "improved")
    # -.001, -.002, -.003: mean -.002, deviation .001; t(2) = 4.303, so the interval reaches .0025 and holds 0.
    assert reported["hidden HF error"] == "-0.0020 ± 0.0010 ~"
    # +1, +2, -1 points: mean .667, deviation 1.528.
    assert reported["FT"] == "+0.67 ± 1.53 ~"
    assert reported["hidden PSNR, dB"] == "+0.50 ± 0.00"
    assert reported["n"] == "3"


def test_what_follows_is_said_in_sentences(planted: Study) -> None:
    notes = improved_mae.report(planted, SMALL).notes
    assert "FT: improved less original +0.67 ± 1.53, higher in 2 of 3 seeds: no difference is shown" in notes
    assert (
        "hidden PSNR, dB: improved less original +0.50 ± 0.00, higher in 3 of 3 seeds: a difference is shown" in notes
    )


def test_only_seeds_that_both_have_are_paired(planted: Study) -> None:
    (planted.rows["improved"][0].path / "evaluation/evaluate.json").unlink()
    base, other = read_rows(planted.rows)
    (row,) = pair_by_seed(base, [other], [column("HF", "evaluate", HF, spec=".4f")]).rows
    assert row.cells == ["2", "-0.0025 ± 0.0007 ~"]
    (planted.rows["improved"][1].path / "evaluation/evaluate.json").unlink()
    base, other = read_rows(planted.rows)
    (row,) = pair_by_seed(base, [other], [column("HF", "evaluate", HF, spec=".4f")]).rows
    assert row.cells == ["1", "-0.0030 ~"]


def test_rows_that_are_not_finished_are_left_out(planted: Study) -> None:
    for run in planted.rows["improved"]:
        run.summary.unlink()
    findings = improved_mae.report(planted, SMALL)
    assert [group.label for group in findings.groups] == ["original"]
    assert len(findings.tables) == 2


def test_what_a_file_says_it_could_not_have_is_said_with_its_reason(tmp_path: Path) -> None:
    report = {"kind": "evaluate", "scores": {"composite": {}}, "unavailable": {"lpips_alex": "no weights; fetch them"}}
    make_run(tmp_path / "run", scores={"evaluate": report})
    study = Study("any", "Any", tmp_path, rows={"a": [Trained(tmp_path / "run", "a")]})
    findings = improved_mae.Findings(study, read_rows(study.rows))
    findings.tabulate("T", [column("LPIPS", "evaluate", "composite.lpips_alex", metric="lpips_alex")])
    assert findings.tables[0].rows[0].cells == ["1", "-"]
    assert findings.tables[0].notes == ["no LPIPS: no weights; fetch them"]


def test_the_pages_hold_tables_pictures_cost_and_what_failed(planted: Study) -> None:
    findings = improved_mae.report(planted, SMALL)
    full = Extrapolation(1.25, 40, ["evaluate b"], ["finetune b"])
    findings.write(quick=True, failed=["some cell"], cost=Cost(0.25, 0.125, full, Extrapolation(0.75, 40, [], [])))
    page = (planted.out / "results.md").read_text()
    assert "| improved | 3 | 0.0300 ± 0.0010 " in page
    assert "0.25 hours by the clock, 0.12 of CPU time" in page
    assert "the full form, 40 cells, extrapolated from these: 0.8 hours of CPU time; 1.2 by the clock" in page
    assert "taken from other cells of the command: evaluate b" in page
    assert "not counted, nothing like it was run: finetune b" in page
    assert "some cell: not finished" in page
    assert "quick form" in page
    assert "![scores](figures/scores.png)" in page
    with Image.open(planted.out / "figures/scores.png") as figure:
        assert figure.format == "PNG"
    reported = json.loads((planted.out / "results.json").read_text())
    found = reported["rows"][1]["scores"][f"evaluate.{HF}"]
    assert (found["n"], found["mean"]) == (3, pytest.approx(0.030))
    assert found["values"]["improved_mae_s2"] == 0.031
    assert reported["cost"]["full"]["hours"] == 1.25


def test_accuracies_of_train_and_test_and_their_other_reading_stand_apart(tmp_path: Path) -> None:
    form = kth_mae.Form(seeds=(0,), ratios=(0.5, 0.75), masks=("random",), sizes=("small",))
    rows = {"small, random": 0.75, "small, random, ratio 0.5": 0.5}
    study = Study("kth_mae", "KTH MAE", tmp_path)
    for number, (row, ratio) in enumerate(rows.items()):
        test, train = 0.4 + 0.1 * number, 0.53
        head = accuracy(test) | {"train": accuracy(train)}
        head |= {"one_hot_agreement": {"test": 1 - 0.2 * (1 - test), "train": 1 - 0.2 * (1 - train)}}
        scores = {
            f"probe_kth_{name}": {"protocol": "kth", "scores": {"encoder": {"class": head}}} for name in kth_mae.HEADS
        }
        scores["evaluate"] = {"kind": "evaluate", "unavailable": {}, "scores": {"masked": {"psnr": 15.0}}}
        path = make_run(tmp_path / "runs" / f"small_{ratio}", f"masking.ratio={ratio}", scores=scores)
        study.rows[row] = [Trained(path, "small", 0)]
    findings = kth_mae.report(study, form)
    table = cells(findings.tables[0], "small, random")
    assert (table["KTH head mlp, test"], table["KTH head mlp, train"]) == ("40.00", "53.00")
    assert findings.tables[1].title.startswith("What any encoder must beat")
    assert findings.tables[1].notes == []  # no probe is missing: the other rows have none beside them by design
    assert cells(findings.tables[2], "small, random")["dense, train"] == "0.906"  # the text's number, of train
    places = kth_mae.places_of(form)
    assert {row: place["masking.ratio"] for row, place in places.items()} == {
        "small, random, ratio 0.5": "0.5", "small, random": "0.75",
    }  # fmt: skip
    assert (tmp_path / "figures/accuracy_by_ratio.png").exists()
