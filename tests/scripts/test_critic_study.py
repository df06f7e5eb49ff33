"""The rows of the critic's study: single changes, each with its exact control, scored where nothing was selected."""

import json
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import conduct
import critic
from conftest import DEBUG
from critic_rows import CHOSEN, NO_CRITIC, PARTS, ROWS, control_of, needs_squeezenet, words_of
from findings import read_rows
from perceptual_mae.cli import app
from perceptual_mae.config.layers import flatten
from perceptual_mae.config.parsing import RunConfig, load_config
from perceptual_mae.errors import UserError
from run_folders import make_run
from starting import assumed_hours
from study import Study
from studying import BATCH, InProcess

SQUEEZENET = "squeezenet.safetensors"
CRITIC = ("discriminator", "augment", "penalties", "optimizer.discriminator")
CRITIC_TERMS = ("losses.adversarial", "losses.feature_matching", "losses.style")
FOUR = ("start", "share_0.6", "composite", "late")
"""In place of those that the ladder has not chosen yet."""
TRAINED = [name for name in ROWS if not ROWS[name].sharpens]
PAGE = Path(__file__).parents[2] / "docs/results/critic.md"
TINY = {"layer": DEBUG, "epochs": 1, "epoch_images": 16, "val_images": 0, "labels": 32, "test_images": 8}


@cache
def config_of(name: str) -> RunConfig:
    return load_config(["cifar10", *words_of(name, SQUEEZENET)])


def flat(name: str) -> dict[str, Any]:
    leaves = flatten(config_of(name).model_dump(mode="json"))
    return {key: value for key, value in leaves if value != {}}


def is_below(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(f"{key}.".startswith(f"{prefix}.") for prefix in prefixes)


def without_critic(name: str) -> dict[str, Any]:
    """What a row is trained with besides its critic; levels below full size count where there are any."""
    values = flat(name)
    unused = ("losses.l1.low_levels",) if not values["generator.rgb_heads"] else ()
    return {key: value for key, value in values.items() if not is_below(key, (*CRITIC, *CRITIC_TERMS, *unused))}


@pytest.mark.parametrize("name", TRAINED)
def test_a_row_has_a_critic_or_a_perceptual_target_where_it_has_a_control(name: str) -> None:
    config = config_of(name)
    terms = {term.partition(".")[2] for term in CRITIC_TERMS}
    has_control = bool(control_of(name))
    assert has_control == bool(terms & set(config.losses.root)) == (name not in NO_CRITIC)
    assert (config.discriminator is not None) == has_control or name == "perceptual"


@pytest.mark.parametrize("name", [name for name in TRAINED if control_of(name)])
def test_a_control_is_the_same_generator_by_the_same_pixel_terms_without_critic(name: str) -> None:
    control = config_of(control_of(name))
    assert control.discriminator is None
    assert without_critic(name) == without_critic(control_of(name))


@pytest.mark.parametrize("name", [name for name in TRAINED if ROWS[name].base])
def test_a_row_differs_from_its_base_in_what_it_says(name: str) -> None:
    before, after = flat(ROWS[name].base), flat(name)
    changed = {key for key in {**before, **after} if before.get(key, ...) != after.get(key, ...)}
    said = tuple(word.partition("=")[0] for word in ROWS[name].words)
    if name == "no_features":  # a method of its own: the start's, without two terms
        said = CRITIC_TERMS[1:]
    assert changed
    assert [key for key in changed if not is_below(key, said)] == []
    assert all(any(is_below(key, (each,)) for key in changed) for each in said) or name == "l1_heads"


def test_no_two_rows_are_the_same() -> None:
    values = [json.dumps(flat(name), sort_keys=True) for name in TRAINED]
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("part", PARTS)
def test_every_row_of_a_part_runs_next_to_its_control(part: str) -> None:
    form = replace(critic.FULL[part], squeezenet=SQUEEZENET)
    names = critic.rows_of(form)
    assert {control_of(name) for name in names} - {""} <= set(names)
    assert set(PARTS[part]) <= set(names)
    grouped = critic.by_control(names)
    assert sorted(row for rows in grouped.values() for row in rows) == sorted(filter(control_of, names))


def test_rows_are_chosen_by_name_and_those_without_their_network_are_left_out() -> None:
    form = replace(critic.LADDER, rows=("relativistic",))
    assert critic.rows_of(form) == ["l1_skips", "relativistic"]
    assert "projected" not in critic.rows_of(critic.LADDER)
    with pytest.raises(UserError, match="--rows: ladder has no perceptual; choose from"):
        critic.rows_of(replace(form, rows=("perceptual",)))
    with pytest.raises(UserError, match="name its file by --squeezenet"):
        critic.rows_of(replace(form, rows=("projected",)))
    with pytest.raises(UserError, match="--part: there is no stairs"):
        critic.rows_of(replace(form, part="stairs"))
    needing = [name for name in ROWS if needs_squeezenet(name)]
    sharpened = [f"{row}_sharpened_by_features" for row in ("mse", "l1_skips")]
    assert needing == ["projected", "projected_128", "perceptual", "perceptual_and_critic", *sharpened]
    assert critic.rows_of(replace(critic.FINAL, rows=("patch", "mse"))) == ["mse", "l1_skips", "patch"]


def planned(tmp_path: Path, part: str, *overrides: str, **form: Any) -> Study:
    return critic.plan(replace(critic.FULL[part], **form), tmp_path, list(overrides))


def lines(study: Study) -> list[str]:
    return [cell.line for cell in study.cells if cell.words[0] == "pretrain"]


def test_the_ladder_is_scored_on_images_held_out_from_train_and_the_rest_on_test(tmp_path: Path) -> None:
    ladder = lines(planned(tmp_path, "ladder", rows=("start",)))
    assert all("data.val_images=5000 evaluation.split=val" in line for line in ladder)
    final = lines(planned(tmp_path, "final", rows=("start",)))
    assert not any("val" in line.replace("evaluation.every", "").replace("evaluation.limit", "") for line in final)
    assert len(final) == 3 * len(ladder)
    with pytest.raises(UserError, match=r"--set evaluation.split: the study sets it itself"):
        planned(tmp_path, "ladder", "evaluation.split=test")


def test_a_decoder_is_sharpened_on_a_share_of_its_runs_images_and_compared_with_that_run(tmp_path: Path) -> None:
    study = planned(tmp_path, "sharpen", rows=("mse_sharpened",), seeds=(0, 1), resnet="net.st")
    assert list(study.rows) == ["mse", "mse_sharpened"]
    cells = [cell for cell in study.cells if cell.words[0] == "sharpen"]
    assert [cell.words[1] for cell in cells] == [str(run.path) for run in study.rows["mse"]]
    assert {cell.images for cell in cells} == {9_000}
    assert all("recommended --share 0.15" in cell.line for cell in cells)
    assert critic.by_control(list(study.rows)) == {"mse": ["mse_sharpened"]}


def test_every_run_is_scored_by_commands_that_pmae_understands(tmp_path: Path) -> None:
    study = planned(tmp_path, "ladder", BATCH, rows=("start", "msg_gan_p"), seeds=(0, 1), resnet="net.st", **TINY)
    assert study.mistakes == []
    group = get_command(app)
    for cell in study.cells:
        group.commands[cell.words[0]].make_context(cell.words[0], list(cell.words[1:]))
    for run in study.runs:
        scored = [cell.words[0] for cell in study.cells if cell.name.startswith(f"{run.name}: ")]
        assert scored == ["evaluate", "probe", "knn"]
    assert [path.stem for path in study.drawn] == ["l1_heads_1", "l1_skips_1"]
    (sheet,) = [cell for cell in study.cells if cell.name == "figure l1_skips_1"]
    shown = [Path(word).name for word in sheet.words if "/runs/" in word]
    assert shown == ["l1_skips_s0", "msg_gan_p_s0", "start_s0"]


def test_the_page_states_the_hours_that_the_plan_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.images_of", budget_of)
    monkeypatch.setattr("study.log_often", lambda words, images: [])
    page = PAGE.read_text()
    for part in PARTS:
        rows = (*PARTS[part], *(FOUR if part == "final" and not CHOSEN else ()))
        study = planned(tmp_path, part, squeezenet=SQUEEZENET, rows=rows)
        trained, scored = assumed_hours(study)
        runs = len(study.runs)
        assert f"| {part} | {runs} | {trained:.1f} h | {scored:.1f} h |" in page, (part, runs, trained, scored)


def budget_of(words: tuple[str, ...]) -> int:
    """The images of a training on CIFAR-10, which need not be there."""
    values = dict(word.split("=", 1) for word in words if "=" in word)
    return int(values["training.epochs"]) * int(values["training.epoch_images"])


def plant(study: Study, name: str, fids: list[float], probe: float) -> None:
    for run, fid in zip(study.rows[name], fids, strict=True):
        masked = {"ssim": 0.4, "psnr": 17.0, "high_frequency": 0.15, "patch_std": 0.05}
        reports = {
            "evaluate": {
                "kind": "evaluate",
                "unavailable": {},
                "scores": {"masked": masked, "composite": {"fid[resnet20]": fid, "kid[resnet20]": 1.0}},
            },
            "probe_cached": {"protocol": "cached", "scores": {"encoder": {"mean": {"accuracy": probe}}}},
            "knn": {"protocol": "knn", "scores": {"encoder": {"mean": {"20": 0.33}}}},
        }
        make_run(run.path, f"training.seed={run.seed}", scores=reports)


def test_rows_are_compared_by_seed_with_their_control_and_their_base_in_words_too(tmp_path: Path) -> None:
    form = replace(critic.FINAL, rows=("share_0.6", "start"), resnet="net.st", **TINY)
    study = critic.plan(form, tmp_path, [BATCH])
    plant(study, "l1_skips", [18.0, 18.2, 18.4], 0.50)
    plant(study, "start", [15.0, 15.1, 15.5], 0.51)
    plant(study, "share_0.6", [14.0, 14.0, 14.6], 0.50)
    findings = critic.report(study, form)
    assert [table.title for table in findings.tables] == [
        *("All rows", "Less l1_skips, paired by seed", "Less start, paired by seed"),
    ]
    of_start = next(row for row in findings.tables[1].rows if row.label == "start")
    assert of_start.cells[:2] == ["3", "-3.00 ± 0.10"]
    (changed,) = findings.tables[2].rows
    assert (changed.label, changed.cells[1]) == ("share_0.6", "-1.00 ± 0.10")
    assert "FID [resnet20]: start less l1_skips -3.00 ± 0.10, higher in 0 of 3 seeds: a difference is shown" in (
        findings.notes
    )
    assert findings.tables[0].rows[0].cells[-1] == "33.00 ± 0.00"


def test_git_keeps_scores_of_finished_runs_and_no_checkpoints(tmp_path: Path) -> None:
    run = PAGE.parent / "critic/ladder/runs/start_s0"
    kept = ["config.yaml", "summary.json", "environment.json", "evaluation/evaluate.json"]
    left = ["metrics.jsonl", "log.txt", "checkpoints/step_1/generator.safetensors", "evaluation/evaluate.csv"]
    left += ["../../study.json", "../../figures/l1_skips_1.png", "evaluation/evaluate.png"]
    paths = [str(run / name) for name in (*kept, *left)]
    found = subprocess.run(
        ["git", "check-ignore", "--no-index", *paths], cwd=PAGE.parent, capture_output=True, text=True, check=False
    )
    if found.returncode > 1:
        pytest.skip("not a git checkout")
    assert set(found.stdout.split()) == set(paths[len(kept) :])


@pytest.mark.slow
def test_a_part_from_its_command_line_to_its_page_and_on_from_what_git_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = InProcess()
    monkeypatch.setattr(conduct, "follow", cells)
    out = tmp_path / "ladder"
    words = [f"--{key.replace('_', '-')}={value}" for key, value in TINY.items()]
    words += ["--part", "ladder", "--rows", "start,msg_gan", "--seeds", "0", "--set", BATCH, "--out", str(out)]
    assert critic.main(words) == 0
    page = (out / "results.md").read_text()
    assert "## Less l1_heads, paired by seed" in page
    for path in [path for path in out.rglob("*") if path.is_file()]:
        relative = path.relative_to(out).as_posix()
        if not relative.startswith("runs/") or path.suffix not in (".json", ".yaml") or "checkpoints" in relative:
            path.unlink()
    for folder in (out / "compare", out / "figures"):
        folder.rmdir()
    cells.ran = []
    assert critic.main(words) == 1  # pictures need checkpoints
    assert set(cells.ran) == {"visualize", "compare"}
    assert "## Less l1_heads, paired by seed" in (out / "results.md").read_text()
    assert len(read_rows(critic.plan(replace(critic.LADDER, rows=("start",), **TINY), out, [BATCH]).rows)) == 2
