"""A study runs what is not done, goes on where it was stopped, and refuses what is not its own."""

import json
import os
from pathlib import Path

import pytest

import conduct
from conduct import Conductor
from perceptual_mae.config.parsing import load_config, to_yaml
from perceptual_mae.errors import UserError
from run_folders import make_run
from studying import Stand, small_study


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    stands = Stand(small_study(tmp_path / "study"))
    monkeypatch.setattr(conduct, "follow", stands)
    return stands


def conductor(tmp_path: Path, *overrides: str, quick: bool = False) -> Conductor:
    return Conductor(small_study(tmp_path / "study", *overrides), quick=quick)


def names(tmp_path: Path) -> list[str]:
    return [cell.name for cell in small_study(tmp_path / "study").cells]


def test_every_cell_runs_once_in_order_and_a_second_call_runs_none(stand: Stand, tmp_path: Path) -> None:
    assert conductor(tmp_path).run()
    assert stand.ran == names(tmp_path)
    assert conductor(tmp_path).run()
    assert stand.ran == names(tmp_path)


def test_a_stopped_study_goes_on_with_the_cell_it_was_stopped_in(stand: Stand, tmp_path: Path) -> None:
    third = stand.stop_at = names(tmp_path)[2]
    assert not conductor(tmp_path).run()
    assert stand.ran[-1] == third
    spent = json.loads((tmp_path / "study/study.json").read_text())["cells"][third]["seconds"]
    stand.stop_at = ""
    again = conductor(tmp_path)
    assert again.run()
    assert stand.ran == [*names(tmp_path)[:3], *names(tmp_path)[2:]]
    assert again.records[third]["seconds"] >= spent
    assert not again.records[third]["whole"]


def test_a_cell_that_ended_well_is_done_even_where_the_user_stopped_meanwhile(stand: Stand, tmp_path: Path) -> None:
    stand.stopped_after = names(tmp_path)[0]
    assert not conductor(tmp_path).run()
    again = conductor(tmp_path)
    assert again.run()
    assert stand.ran == names(tmp_path)
    assert again.failed == []


def test_a_stopped_cell_goes_on_though_it_left_a_file(stand: Stand, tmp_path: Path) -> None:
    first = small_study(tmp_path / "study").cells[0]
    stand.stop_at = first.name
    assert not conductor(tmp_path).run()
    first.result.parent.mkdir(parents=True, exist_ok=True)
    first.result.write_text("{}")  # as a sweep does, some of whose runs are not finished
    stand.stop_at = ""
    assert conductor(tmp_path).run()
    assert stand.ran == [first.name, *names(tmp_path)]


def test_a_comparison_is_made_again_when_a_score_is_newer(stand: Stand, tmp_path: Path) -> None:
    assert conductor(tmp_path).run()
    stand.ran = []
    study = small_study(tmp_path / "study")
    made = (study.out / "compare/compare.json").stat().st_mtime
    scored = study.runs[0].scores("probe_cached")
    os.utime(scored, (made - 1, made - 1))
    assert conductor(tmp_path).run()
    assert stand.ran == []
    os.utime(scored, (made + 1, made + 1))
    assert conductor(tmp_path).run()
    assert stand.ran == ["compare"]


def test_what_fails_is_written_down_what_needs_it_is_skipped_and_the_same_call_tries_both_again(
    stand: Stand, tmp_path: Path
) -> None:
    run = "improved_mae_s1"
    stand.failing = {run}
    first = conductor(tmp_path)
    assert first.run()
    of_it = [name for name in names(tmp_path) if name.startswith(f"{run}:")]
    assert first.failed == [run, *of_it, "compare"]
    assert not set(of_it) & set(stand.ran)
    record = json.loads((tmp_path / "study/study.json").read_text())["cells"][run]
    assert (record["status"], record["reason"]) == ("failed", "out of luck")
    stand.failing, stand.ran = set(), []
    second = conductor(tmp_path)
    assert second.run()
    assert stand.ran == [run, *of_it, "compare"]
    assert second.failed == []


def test_pictures_are_made_again_when_their_runs_have_changed_and_trainings_are_not(
    stand: Stand, tmp_path: Path
) -> None:
    conductor(tmp_path).run()
    record = tmp_path / "study/study.json"
    reported = json.loads(record.read_text())
    reported["cells"]["compare"]["command"] = "pmae compare others"
    record.write_text(json.dumps(reported))
    stand.ran = []
    conductor(tmp_path).run()
    assert stand.ran == ["compare"]


def test_another_command_for_a_finished_cell_is_refused_but_images_may_move(stand: Stand, tmp_path: Path) -> None:
    conductor(tmp_path).run()
    with pytest.raises(UserError, match="original_mae_s0 was made by another command"):
        conductor(tmp_path, "optimizer.lr=2e-3")
    conductor(tmp_path, "data.workers=1")
    with pytest.raises(UserError, match="holds the full form of improved_mae"):
        conductor(tmp_path, quick=True)


def test_somebodys_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study/thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="holds files that are not a study's"):
        conductor(tmp_path)


def test_scores_that_were_kept_without_records_are_gone_on_from(stand: Stand, tmp_path: Path) -> None:
    kept = small_study(tmp_path / "study").runs[0]
    make_run(kept.path, scores={"evaluate": {"scores": {}}})
    plan = next(cell for cell in small_study(tmp_path / "study").cells if cell.result == kept.summary)
    (kept.path / "config.yaml").write_text(to_yaml(load_config([*plan.words[1:-2], "data.workers=3"])))
    assert conductor(tmp_path).run()
    assert stand.ran == [name for name in names(tmp_path) if name not in (plan.name, f"{plan.name}: evaluate")]


@pytest.mark.parametrize("value", ["optimizer.lr=0.5", "training.epochs=9"])
def test_a_kept_run_with_other_values_is_refused(stand: Stand, tmp_path: Path, value: str) -> None:
    kept = small_study(tmp_path / "study").runs[0]
    make_run(kept.path)
    plan = next(cell for cell in small_study(tmp_path / "study").cells if cell.result == kept.summary)
    (kept.path / "config.yaml").write_text(to_yaml(load_config([*plan.words[1:-2], value])))
    key = value.partition("=")[0]
    with pytest.raises(UserError, match=f"original_mae_s0: was trained with other values of {key};"):
        conductor(tmp_path)


def test_the_commands_are_written_for_whoever_repeats_a_cell_by_hand(stand: Stand, tmp_path: Path) -> None:
    conductor(tmp_path).run()
    lines = (tmp_path / "study/commands.sh").read_text().splitlines()
    cells = small_study(tmp_path / "study").cells
    assert [line for line in lines if line.startswith("pmae ")] == [cell.line for cell in cells]


def test_a_cell_that_was_stopped_says_nothing_of_what_it_costs(stand: Stand, tmp_path: Path) -> None:
    first = names(tmp_path)[0]
    (tmp_path / "study/runs" / first).mkdir(parents=True)  # as a stopped call leaves it
    (tmp_path / "study/study.json").write_text(json.dumps({"study": "improved_mae", "quick": False, "cells": {}}))
    reported = conductor(tmp_path)
    reported.run()
    assert not reported.records[first]["whole"]
    assert reported.records[names(tmp_path)[1]]["whole"]
