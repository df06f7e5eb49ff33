"""Which runs make one row, what the row is called, and its numbers against hand-worked ones."""

from pathlib import Path

import pytest

from conftest import debug_config
from perceptual_mae.config.layers import list_methods
from perceptual_mae.report.comparison import compare
from perceptual_mae.report.methods import method_of
from perceptual_mae.report.run_records import read_run_records
from perceptual_mae.report.seed_groups import group_runs, score
from run_folders import make_run, probe


def test_mean_and_sample_std_are_those_worked_by_hand():
    found = score({"a": 10.0, "b": 12.0, "c": 17.0, "d": None})
    assert found is not None
    assert found.mean == 13.0
    assert found.std == pytest.approx(13**0.5)  # (9 + 1 + 16) / 2
    assert found.n == 3
    assert score({"a": 4.0}).std is None
    assert score({"a": None}) is None


def test_seeds_of_one_method_are_a_row_with_mean_std_and_n(tmp_path: Path):
    values = {0: (10.0, 0.5), 1: (12.0, 0.6), 2: (17.0, None)}
    paths = [
        make_run(
            tmp_path / f"run_{seed}",
            f"training.seed={seed}",
            psnr_masked=psnr,
            scores={} if accuracy is None else {"probe_cached": probe(accuracy)},
        )
        for seed, (psnr, accuracy) in values.items()
    ]
    found = compare(paths, title="t")
    assert [group.label for group in found.groups] == ["MSE"]
    held_out, *_, representation, _ = found.tables
    assert held_out.rows[0].cells[:2] == ["3", "13.00 ± 3.61"]
    assert representation.rows[0].cells[1] == "55.00 ± 7.07 (n = 2)"
    assert any(f"`pmae probe {paths[2]}`" in note for note in representation.notes)
    scores = found.to_json()["groups"][0]["scores"]
    assert scores["summary.psnr_masked"]["values"] == {"run_0": 10.0, "run_1": 12.0, "run_2": 17.0}
    assert scores["probe_cached.class"]["n"] == 2


def test_where_images_are_and_how_they_are_read_makes_no_other_method(tmp_path: Path):
    ways = ["data.workers=1", "evaluation.every=0", "training.keep_last=1"]
    paths = [make_run(tmp_path / str(seed), f"training.seed={seed}", way) for seed, way in enumerate(ways)]
    groups, repeated = group_runs(read_run_records(paths))
    assert [group.seeds for group in groups] == [[0, 1, 2]]
    assert repeated == []


def test_rows_of_one_method_are_reported_apart_by_the_key_that_differs(tmp_path: Path):
    paths = [make_run(tmp_path / name, f"optimizer.lr={name}") for name in ("1e-3", "2e-3")]
    groups, _ = group_runs(read_run_records(paths))
    assert [group.label for group in groups] == ["MSE (optimizer.lr=0.001)", "MSE (optimizer.lr=0.002)"]


def test_a_repeated_seed_is_no_second_sample(tmp_path: Path):
    groups, repeated = group_runs(read_run_records([make_run(tmp_path / name) for name in "ab"]))
    assert [len(group.records) for group in groups] == [1, 1]
    assert repeated == ["training.seed: b repeats a, 0 in both and all else alike"]


def test_scores_that_stand_on_different_things_are_never_averaged(tmp_path: Path):
    limits = (None, 500)
    paths = [
        make_run(tmp_path / str(seed), f"training.seed={seed}", scores={"probe_cached": probe(0.5, limit=limit)})
        for seed, limit in enumerate(limits)
    ]
    groups, _ = group_runs(read_run_records(paths))
    assert [len(group.records) for group in groups] == [1, 1]


TWINS = {"improved_mae_original": "mse"}  # the same training under its study's name: the plainer one is told


@pytest.mark.parametrize("name", [layer.name for layer in list_methods()])
def test_every_shipped_method_is_known_by_its_parts(name: str):
    method = method_of(debug_config(name))
    assert method is not None
    assert method.name == TWINS.get(name, name)
    assert not {key for key in method.changed if not key.endswith((".weights", ".width", "channels", "channel_base"))}


def test_a_method_with_other_values_is_the_method_and_says_so(tmp_path: Path):
    method = method_of(debug_config("ls_gan_p", "losses.style.weight=10", "training.order=sequential"))
    assert method is not None
    assert (method.name, method.changed) == ("ls_gan_p", ("losses.style.weight",))
    assert method_of(debug_config("ls_gan_p", "losses.mse=1")) is None
