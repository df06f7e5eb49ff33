"""What each study would run: equal budgets, words that pmae understands, one thing changed at a time."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.main import get_command

import art_mae
import improved_mae
import kth_mae
import mae_ablations
from budget import images_of, keep_images, log_often
from conftest import DEBUG
from encoder_scores import check_labels, whole_labelled_part
from perceptual_mae.cli import app
from perceptual_mae.config.layers import flatten
from perceptual_mae.config.parsing import load_config
from perceptual_mae.errors import UserError
from study import TRIAL, Study
from studying import BATCH, SMALL, small_study

TINY = {"images": 0, "epochs": 1, "test_images": 4}
LABELLED = {"layer": DEBUG, "labels": 8, "seeds": (0,)}


def kth(out: Path) -> Study:
    form = kth_mae.Form(seeds=(0, 1), ratios=(0.5, 0.75), labels=8, **TINY)
    return kth_mae.plan(form, out, ["data.workers=0"])


def art(out: Path) -> Study:
    return art_mae.plan(art_mae.Form(ratios=(0.5, 0.75), patches=(4, 8), **TINY), out, [])


def ablations(out: Path, **form: object) -> Study:
    return mae_ablations.plan(mae_ablations.Form(**{**TINY, **LABELLED, **form}), out, [BATCH])


@pytest.fixture
def debug_recipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Debug size under the names of the recipes, so that no images are needed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kth_mae, "recipe", lambda size: DEBUG)
    monkeypatch.setattr(art_mae, "recipe", lambda model: DEBUG)


def trainings(study: Study) -> dict[str, list[str]]:
    return {cell.name: list(cell.words[1:-2]) for cell in study.cells if cell.words[0] == "pretrain"}


def changed(study: Study, first: str, second: str) -> set[str]:
    """Name the keys in which two runs of a study differ."""
    found = [dict(flatten(load_config(trainings(study)[name]).model_dump(mode="json"))) for name in (first, second)]
    return {key for key in {**found[0], **found[1]} if found[0].get(key, ...) != found[1].get(key, ...)}


def test_improved_and_original_differ_in_the_three_additions_alone(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    reported = changed(study, "original_mae_s1", "improved_mae_s1")
    assert {key.rpartition(".")[0] if key.startswith("losses") else key.split(".")[1] for key in reported} == {
        "ratio", "losses.high_frequency", "losses.uniformity",
    }  # fmt: skip
    assert changed(study, "improved_mae_s0", "improved_mae_s1") == {"training.seed"}


def test_a_cell_counts_the_images_that_pass_through_its_network(tmp_path: Path) -> None:
    images = {cell.name: cell.images for cell in small_study(tmp_path).cells}
    run = "original_mae_s0"
    assert images[run] == 2 * 32
    assert images[f"{run}: evaluate"] == 8
    assert images[f"{run}: probe_cached"] == 2 * (16 + 8)  # the random encoder too
    assert images["improved_mae_s0: probe_cached"] == 16 + 8
    assert images[f"{run}: finetune_small"] == 20 * 12
    assert images_of((DEBUG, "mse", "training.epoch_images=null")) == 2 * 96


def test_a_trial_is_the_same_command_on_more_images_in_a_place_of_its_own(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    before = {cell.words[0]: cell for cell in reversed(study.cells)}
    study.add_trials()
    trials = {cell.words[0]: cell for cell in study.cells if cell.name.startswith("trial: ")}
    assert set(trials) == {"pretrain", "evaluate", "probe", "finetune"}
    for command, trial in trials.items():
        assert trial.kind == before[command].kind
        assert trial.images == TRIAL * before[command].images
        assert trial.result.parent.name == "trial"
    pretrain = trials["pretrain"].words
    assert images_of(pretrain[1:-2]) == trials["pretrain"].images
    assert pretrain[-2:] == ("--out", str(tmp_path / "runs/trial"))
    probe = trials["probe"].words
    assert [probe[probe.index(option) + 1] for option in ("--limit", "--test-limit")] == ["64", "32"]


def test_a_short_training_logs_often_enough_for_a_curve(tmp_path: Path) -> None:
    words = ["cifar10", "mse", "training.batch_size=64"]
    assert log_often(words, 1_024) == ["training.log_every=1"]
    assert log_often(words, 4_096) == ["training.log_every=4"]
    assert log_often(words, 64_000) == []
    study = improved_mae.plan(replace(SMALL, seeds=(0,)), tmp_path, [BATCH, "training.log_every=50"])
    words = trainings(study)["original_mae_s0"]
    assert "training.log_every=1" in words
    assert load_config(words).training.log_every == 50  # what the user sets wins


def test_scores_wait_for_their_run_and_pictures_for_both(tmp_path: Path) -> None:
    cells = {cell.name: cell for cell in small_study(tmp_path).cells}
    summaries = [tmp_path / "runs" / f"{label}_mae_s0" / "summary.json" for label in improved_mae.METHODS]
    assert cells["improved_mae_s0: finetune_small"].needs == (summaries[1],)
    assert cells["figure grid_ratio_0.9"].needs == tuple(summaries)
    assert cells["figure grid_ratio_0.9"].words[-2:] == ("--out", str(tmp_path / "figures/grid_ratio_0.9.png"))


def test_a_warm_start_waits_for_the_run_it_starts_from(tmp_path: Path) -> None:
    study = improved_mae.plan(replace(SMALL, seeds=(0,), warm_start=1), tmp_path, [BATCH])
    warm = next(cell for cell in study.cells if cell.name == "warm_mae_s0")
    assert warm.needs == (tmp_path / "runs/original_mae_s0/summary.json",)
    assert f"generator.init_from={tmp_path / 'runs/original_mae_s0'}" in warm.words


def test_sizes_are_the_recipes_unless_they_are_said(tmp_path: Path) -> None:
    form = replace(SMALL, seeds=(0,), size=0, patch_size=0, layer="stl10_improved_mae")
    study = improved_mae.plan(form, tmp_path, [])
    assert study.title.endswith("96 px")
    words = trainings(study)["original_mae_s0"]
    config = load_config(words)
    assert (config.data.image_size, config.generator.patch_size) == (96, 16)


def test_a_labelled_part_of_its_own_is_scored_whole_whatever_training_holds_back(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("data: {kind: stl10, root: mine, image_size: 96}\n")
    assert whole_labelled_part("stl10") == ("data.val_images=0",)
    assert whole_labelled_part(str(tmp_path / "mine.yaml"), "optimizer.lr=1") == ("data.val_images=0",)
    assert whole_labelled_part("cifar10") == ()


def test_images_are_held_back_by_number_where_the_data_can(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shapes has 96 training images"):
        keep_images([DEBUG, "mse"], 97)
    with pytest.raises(UserError, match="give --images 0"):
        keep_images([DEBUG, "mse"], 50)
    assert keep_images([DEBUG, "mse"], 0) == []


def test_a_mistake_is_reported_once_with_the_first_training_that_has_it(tmp_path: Path) -> None:
    study = improved_mae.plan(replace(SMALL, seeds=(0,)), tmp_path, [BATCH, "optimizer.lrr=1"])
    (mistake,) = study.mistakes
    assert mistake.startswith("original_mae_s0: ")
    assert "did you mean 'lr'" in mistake


def test_each_ablation_changes_one_thing(tmp_path: Path) -> None:
    study = ablations(tmp_path)
    assert study.mistakes == []
    names = [name for name in trainings(study) if name != "mae_s0"]
    assert len(names) == sum(len(rows) for rows in mae_ablations.ABLATIONS.values())
    for name in names:
        reported = changed(study, "mae_s0", name)
        things = {
            "masking" if key.startswith("masking.") else key for key in reported
        }  # a kind of masks has its options
        assert len(things) == 1, name


def test_rows_and_groups_of_ablations_are_chosen_by_name(tmp_path: Path) -> None:
    study = ablations(tmp_path, only=("masks", "targets"), rows=("grid",), teacher="{kind: vgg16, weights: random}")
    assert list(study.rows) == ["MAE", "grid"]
    assert [path.stem for path in study.drawn] == ["masks", "loss_curves"]
    study = ablations(tmp_path, only=("targets",), teacher="{kind: vgg16, weights: random}")
    assert list(study.rows) == ["MAE", "normalised pixels", "features of a teacher"]
    assert study.mistakes == []
    with pytest.raises(UserError, match="there is no group mask; choose from: targets"):
        ablations(tmp_path, only=("mask",))
    with pytest.raises(UserError, match="there is no gird; choose from"):
        ablations(tmp_path, rows=("gird",))
    with pytest.raises(UserError, match="none of grid is in targets"):
        ablations(tmp_path, only=("targets",), rows=("grid",))
    quick = replace(mae_ablations.QUICK, **{**TINY, **LABELLED}, only=("masks",))
    assert list(mae_ablations.plan(quick, tmp_path, [BATCH]).rows) == ["MAE", "grid", "attended hidden"]


def test_what_the_rows_differ_in_is_not_set_for_all_of_them(debug_recipes: None, tmp_path: Path) -> None:
    def refused(override: str, plan: Callable[[], object]) -> None:
        with pytest.raises(UserError, match=f"--set {override.partition('=')[0]}: the study sets it itself"):
            plan()

    for override in ("masking.ratio=0.5", "losses.uniformity.weight=1", "masking={ratio: 0.5}", "training.seed=3"):
        refused(override, lambda each=override: small_study(tmp_path, each))
    refused("training.epochs=3", lambda: art_mae.plan(art_mae.QUICK, tmp_path, ["training.epochs=3"]))
    refused("masking.kind=grid", lambda: kth_mae.plan(kth_mae.QUICK, tmp_path, ["masking.kind=grid"]))
    form = mae_ablations.Form(**TINY, **LABELLED, only=("decoder",))
    refused("generator.decoder_depth=3", lambda: mae_ablations.plan(form, tmp_path, ["generator.decoder_depth=3"]))
    assert mae_ablations.plan(form, tmp_path, [BATCH, "masking.kind=grid"]).mistakes == []  # no row of these groups
    with pytest.raises(UserError, match="--images decides how many are held back"):
        keep_images([DEBUG, "mse", "data.val_images=4"], 50)


def test_more_labels_than_images_are_refused_where_they_are_the_same_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--finetune-labels 12: only 8 training images are kept"):
        improved_mae.plan(replace(SMALL, images=8, labels=8), tmp_path, [BATCH])
    with pytest.raises(UserError, match="--labels 16: only 8"):
        kth_mae.plan(kth_mae.Form(images=8, labels=16), tmp_path, [])
    check_labels(replace(SMALL, layer="stl10", images=8))  # its labelled part is apart


def test_a_ratio_of_the_curve_is_trained_once_whatever_masks_are_compared(debug_recipes: None, tmp_path: Path) -> None:
    form = kth_mae.Form(**TINY, seeds=(0,), sizes=("small",), labels=8, masks=("grid",), ratios=(0.5, 0.75))
    assert list(kth_mae.plan(form, tmp_path, []).rows) == ["small, grid", "small, random, ratio 0.5", "small, random"]


def test_the_curve_over_ratios_shares_its_middle_with_the_comparison_of_masks(
    debug_recipes: None, tmp_path: Path
) -> None:
    study = kth(tmp_path)
    assert list(study.rows) == [
        "small, random", "small, grid", "small, block", "medium, random", "medium, grid", "medium, block",
        "small, random, ratio 0.5", "medium, random, ratio 0.5",
    ]  # fmt: skip
    assert [run.name for run in study.rows["small, random"]] == ["small_random_0.75_s0", "small_random_0.75_s1"]
    assert len(study.rows["small, random, ratio 0.5"]) == 1


def test_the_ablation_over_patches_is_one_sweep_whose_runs_are_scored(debug_recipes: None, tmp_path: Path) -> None:
    study = art(tmp_path)
    (sweep,) = [cell for cell in study.cells if cell.words[0] == "sweep"]
    assert (sweep.starts, sweep.images) == (4, 4 * 32)
    runs = study.rows["ratio 0.5, patch_size 4"]
    assert [run.path for run in runs] == [tmp_path / "sweep/ratio-0.5_patch_size-4_seed-0"]
    assert [cell.needs for cell in study.cells if cell.name == f"{runs[0].name}: evaluate"] == [(runs[0].summary,)]


@pytest.mark.parametrize("plan", [small_study, kth, art, ablations], ids=["improved", "kth", "art", "ablations"])
def test_pmae_understands_every_command(plan: Callable[[Path], Study], debug_recipes: None, tmp_path: Path) -> None:
    group = get_command(app)
    for cell in plan(tmp_path).cells:
        command = group.commands[cell.words[0]]
        command.make_context(cell.words[0], list(cell.words[1:]))
        assert shlex.split(cell.line) == ["pmae", *cell.words]
