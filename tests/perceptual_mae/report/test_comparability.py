"""Runs that do not compare are refused by the key and its values, or marked."""

from pathlib import Path

import pytest

from perceptual_mae.errors import UserError
from perceptual_mae.report.comparison import compare
from run_folders import make_run, probe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["training.epochs=3"], "images seen: 64 (a), 96 (b)"),
        (["data.num_images=64"], "data.num_images: 96 (a), 64 (b)"),
        (["data.flip=0.25"], "data.flip: 0.5 (a), 0.25 (b)"),
        (["data.eval_resize=40"], "data.eval_resize: none (a), 40 (b)"),
        (["masking.ratio=0.5"], "masking.ratio (at the end): 0.75 (a), 0.5 (b)"),
        (["masking.kind=perceptual_mae.masking:random"], "masking.kind: random (a), perceptual_mae.masking:random (b)"),
        (["evaluation.seed=1"], "evaluation.seed: 0 (a), 1 (b)"),
        (["evaluation.split=val"], "evaluation.split: test (a), val (b)"),
        (["evaluation.limit=4"], "evaluation.limit: 8 (a), 4 (b)"),
    ],
)
def test_a_difference_is_refused_by_its_key_and_both_values(change: list[str], message: str, tmp_path: Path):
    paths = [make_run(tmp_path / "a"), make_run(tmp_path / "b", "training.seed=1", *change)]
    with pytest.raises(UserError) as refused:
        compare(paths, title="t")
    assert str(refused.value) == f"{message}; compare runs that agree, or mark what differs with --anyway"


def test_runs_that_differ_in_method_seed_and_whereabouts_compare(tmp_path: Path):
    others = (["ls_gan_p"], ["optimizer.lr=2e-3"], ["training.seed=1", "data.workers=1", "evaluation.every=0"])
    paths = [make_run(tmp_path / "a"), *(make_run(tmp_path / str(n), *other) for n, other in enumerate(others))]
    assert compare(paths, title="t").differences == []


def test_other_data_is_one_difference_and_not_one_for_each_of_its_options(tmp_path: Path):
    paths = [make_run(tmp_path / "a"), make_run(tmp_path / "b", "data.kind=digits", "data.num_images=null")]
    with pytest.raises(UserError) as refused:
        compare(paths, title="t")
    assert "data.kind: shapes (a), digits (b)" in str(refused.value)
    assert "data.image_size" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "facts", "marked"),
    [
        (["evaluation.seed=1"], {}, ["hidden PSNR", "PSNR", "SSIM", "mean colour"]),
        ([], {"limit": 500}, ["LP cached"]),
        (["training.epochs=3"], {}, ["hidden PSNR", "PSNR", "SSIM", "mean colour", "LP cached"]),
    ],
)
def test_anyway_marks_the_columns_that_the_difference_touches(
    change: list[str], facts: dict[str, int], marked: list[str], tmp_path: Path
):
    paths = [
        make_run(tmp_path / "a", scores={"probe_cached": probe(0.5)}),
        make_run(tmp_path / "b", "ls_gan_p", *change, scores={"probe_cached": probe(0.6, **facts)}),
    ]
    found = compare(paths, title="t", anyway=True)
    headings = [heading for table in found.tables for heading in table.header if heading.startswith("≠ ")]
    assert len(headings) == len(marked)
    assert all(heading.startswith(f"≠ {name}") for heading, name in zip(headings, marked, strict=True))
    assert sum("are marked ≠" in note for note in found.notes) == 1


def test_a_run_named_twice_and_a_checkpoint_are_refused(tmp_path: Path):
    run = make_run(tmp_path / "a")
    with pytest.raises(UserError, match="is named twice"):
        compare([run, tmp_path / "." / "a"], title="t")
    with pytest.raises(UserError, match="is a checkpoint; what is compared stands in its run folder"):
        compare([run / "checkpoints" / "step_00000008"], title="t")


def test_runs_of_one_seed_are_refused_or_have_a_row_each(tmp_path: Path):
    paths = [make_run(tmp_path / name) for name in "ab"]
    with pytest.raises(UserError, match="b repeats a, 0 in both and all else alike; give one of them"):
        compare(paths, title="t")
    assert [group.label for group in compare(paths, title="t", anyway=True).groups] == ["MSE (a)", "MSE (b)"]


def test_scores_of_another_step_are_left_out_with_a_note(tmp_path: Path):
    run = make_run(tmp_path / "a", scores={"probe_cached": probe(0.5, step=4)})
    found = compare([run], title="t")
    assert found.find("probe") is None
    assert any("probe_cached.json: is of step 4, the run has taken 8" in note for note in found.notes)


def test_scores_of_a_step_that_the_run_has_not_reached_are_left_out_too(tmp_path: Path):
    run = make_run(tmp_path / "a", scores={"probe_cached": probe(0.5, step=12)})
    found = compare([run], title="t")
    assert found.find("probe") is None
    assert any("probe_cached.json: is of step 12, the run has taken 8" in note for note in found.notes)
