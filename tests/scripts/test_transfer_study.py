"""The study of dense transfer: what it pre-trains on, what it runs, and where it looks for scores."""

from pathlib import Path
from types import SimpleNamespace

import pytest

import transfer
from perceptual_mae.errors import UserError
from perceptual_mae.transfer.seeds import Files
from transfer import Form, gather, plan, root_of

FORM = Form(methods=("mse", "recommended"), seeds=(0, 1), epochs=1, steps=20, images=8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for name in (
        *("camvid/train/a.jpg", "camvid/trainannot/a.png", "camvid/val/b.jpg", "coco/train/c.jpg", "coco/val/d.jpg"),
        *("paintings/train/old/e.jpg", "paintings/test/old/f.jpg", "photographs/g.JPEG", "photographs/notes.txt"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def test_no_annotation_and_no_image_that_is_scored_is_pre_trained_on(data: Path, tmp_path: Path) -> None:
    found = gather(data, tmp_path / "images")
    kept = {path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()}
    assert kept == {"camvid/train/a.jpg", "coco/train/c.jpg", "paintings/train/old/e.jpg", "photographs/g.JPEG"}
    assert (found / "coco/train/c.jpg").read_bytes() == b"coco/train/c.jpg"
    assert gather(data, found) == found  # once more: what is there stays


def test_a_root_without_a_data_set_is_refused_in_words(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--root: names no folder; give one that holds camvid and coco"):
        root_of(["training.precision=no"])
    (data / "coco").rename(data / "other")
    with pytest.raises(UserError, match="has no folder coco; it holds camvid and coco"):
        root_of([f"data.root={data}"])
    (data / "other").rename(data / "coco")
    with pytest.raises(UserError, match="--tasks: there is no classify; choose from: segment, detect"):
        plan(Form(tasks=("classify",)), tmp_path / "out", [f"data.root={data}"])


def test_each_task_is_trained_with_every_encoder_from_scratch_and_on_a_random_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.images_of", lambda words: 64)
    study = plan(FORM, tmp_path / "out", [f"data.root={data}", "training.precision=no"])
    trained = [cell for cell in study.cells if cell.words[0] == "pretrain"]
    assert [cell.name for cell in trained] == ["mse_s0", "recommended_s0"]
    assert all(f"data.root={tmp_path / 'out_images'}" in cell.words for cell in trained)
    transfers = {cell.name for cell in study.cells if cell not in trained}
    rows = ("mse", "recommended", "scratch", "random")
    assert transfers == {f"{row}_s{seed}: {task}" for row in rows for seed in (0, 1) for task in ("segment", "detect")}


def test_scores_are_looked_for_where_the_command_leaves_them(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.images_of", lambda words: 64)
    study = plan(FORM, tmp_path / "out", [f"data.root={data}"])
    for cell in study.cells:
        if cell.words[0] == "pretrain":
            continue
        source = SimpleNamespace(from_scratch="--from-scratch" in cell.words, ema=None, run=None, words="")
        out = Path(cell.words[cell.words.index("--out") + 1])
        limits = (FORM.images, FORM.test_images or None)
        files = Files.of(
            source,  # type: ignore[arg-type]
            cell.words[0],
            cell.words[2],
            out,
            frozen="--freeze" in cell.words,
            limits=limits,
        )
        assert cell.result == files.result
        assert cell.words[2] == transfer.RECIPES[cell.words[0]]
