"""A study whose call was killed, at whatever stage, goes on to what an unbroken one leaves."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import conduct
import improved_mae
from conduct import Conductor
from conftest import DEBUG, KilledError, killed_at
from perceptual_mae.evaluation import resumption
from perceptual_mae.run.signals import StopSignal
from perceptual_mae.sweep.launch import Ending
from starting import start
from studying import BATCH, InProcess, Stand, small_study

WORDS = [
    *("--images", "0", "--seeds", "0", "--epochs", "1", "--test-images", "8", "--layer", DEBUG, "--labels", "32"),
    *("--set", "data.num_images=160", "--finetune-labels", "128", "--finetune-epochs", "2", "--set", BATCH),
    *("--set", "data.workers=0"),
]


class KilledStand(Stand):
    """Is killed in the named cell, before it leaves its file or after it has."""

    killed_in, is_after = "", False

    def __call__(self, command: Sequence[str], tell: Callable[[str], None], stop: StopSignal) -> Ending:
        is_killed = self.results[tuple(command)][0] == self.killed_in
        if is_killed and not self.is_after:
            raise KilledError
        ending = super().__call__(command, tell, stop)
        if is_killed:
            raise KilledError
        return ending


def test_a_study_killed_in_every_cell_runs_all_of_them_to_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small_study(tmp_path / "study")
    stand = KilledStand(study)
    monkeypatch.setattr(conduct, "follow", stand)
    for cell in study.cells:
        for stand.is_after in (False, True):
            stand.killed_in = cell.name
            stand.ran = []
            with pytest.raises(KilledError):
                Conductor(study, quick=False).run()
            assert stand.ran == [cell.name] * stand.is_after or not stand.is_after  # what was finished stays
            assert not Conductor(study, quick=False).is_done(cell)  # nobody has heard how it ended
        stand.killed_in = ""
    again = Conductor(study, quick=False)
    assert again.run()
    assert {record["status"] for record in again.records.values()} == {"finished"}
    assert list(again.records) == [cell.name for cell in study.cells]
    assert not any(record["whole"] for record in again.records.values() if record["kind"])


def test_a_study_killed_before_its_record_was_whole_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small_study(tmp_path / "study")
    monkeypatch.setattr(conduct, "follow", Stand(study))
    for place in ("conduct.write_json", "conduct.write_atomically"):
        with mock.patch(place, side_effect=KilledError), pytest.raises(KilledError):
            Conductor(study, quick=False).run()
    (tmp_path / "study/.study.json.partial").write_text("{")
    assert Conductor(study, quick=False).run()


def call(out: Path) -> int:
    plan, report = improved_mae.plan, improved_mae.report
    return start("improved_mae", "", improved_mae.QUICK, improved_mae.FULL, plan, report, [*WORDS, "--out", str(out)])


def left_by(out: Path) -> dict[str, Any]:
    """All scores of a study, of runs and in its table; where they lie aside."""
    files = {
        str(file.relative_to(out)): json.loads(file.read_text())
        for pattern in ("runs/*/summary.json", "runs/*/evaluation/*.json")
        for file in sorted(out.glob(pattern))
    }
    rows = json.loads((out / "results.json").read_text())["rows"]
    statuses = [record["status"] for record in json.loads((out / "study.json").read_text())["cells"].values()]
    return json.loads(json.dumps({"files": files, "rows": rows, "statuses": statuses}).replace(str(out), "OUT"))


@pytest.mark.exhaustive
def test_a_study_killed_at_each_stage_of_its_cells_ends_as_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conduct, "follow", InProcess())
    assert call(tmp_path / "whole") == 0
    monkeypatch.setattr(resumption, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(resumption, "LARGEST_SHARE", float("inf"))
    stages = [
        ("perceptual_mae.training.rollback.check_divergence", 2),  # in the first training
        ("perceptual_mae.training.held_out.score_training", 1),  # trained and not scored
        ("perceptual_mae.evaluation.representation.evaluate.linear_probe", 1),
        ("perceptual_mae.evaluation.finetuning.training.training_loss", 2),
        ("perceptual_mae.evaluation.finetuning.evaluate.score_classifier", 1),
        ("perceptual_mae.evaluation.finetuning.training.training_loss", 2),  # from scratch
        ("perceptual_mae.visualization.image_grid.sheet", 1),  # in the next training's pictures
        ("perceptual_mae.cli.compare.write_json", 1),
        ("findings.draw_scores", 1),
        ("findings.write_json", 1),  # between both files of the table
    ]
    for place, number in stages:
        with killed_at(place, number), pytest.raises(KilledError):
            call(tmp_path / "study")
    assert call(tmp_path / "study") == 0
    assert left_by(tmp_path / "study") == left_by(tmp_path / "whole")
