"""The batch of a step is drawn again as the run had it."""

import json
from pathlib import Path

import pytest

from conftest import debug_config
from perceptual_mae.cli import main
from perceptual_mae.data.loading import Batch
from perceptual_mae.run.folder import describe
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training.loop import pretrain
from perceptual_mae.training.trainer import Trainer


def test_a_redrawn_batch_is_the_one_that_the_run_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    indices: dict[int, list[int]] = {}
    step = Trainer.step

    def noted(self: Trainer, batches: list[Batch], progress: TrainingProgress) -> object:
        indices[progress.step] = [index for batch in batches for index in batch.indices.tolist()]
        return step(self, batches, progress)

    monkeypatch.setattr(Trainer, "step", noted)
    short = ("evaluation.every=0", "evaluation.limit=2", "evaluation.grid_images=1")
    pretrain(debug_config("mse", *short), tmp_path / "run", quiet=True)
    assert main(["debug-batch", str(tmp_path / "run"), "5"]) == 0
    folder = tmp_path / "run" / "debug" / "step_00000005"
    report = json.loads((folder / "batch.json").read_text())
    assert [image["index"] for image in report["images"]] == indices[5]
    assert all(0 <= image["lowest"] <= image["highest"] <= 1 for image in report["images"])
    assert all(image["non_finite_pixels"] == 0 for image in report["images"])
    assert (folder / "batch.png").stat().st_size > 1000


@pytest.mark.parametrize("step", ["8", "-1"])
def test_a_step_that_the_run_does_not_have_is_refused(
    step: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    describe(tmp_path / "run", debug_config("mse"), "cpu", "no")
    assert main(["debug-batch", str(tmp_path / "run"), "--", step]) == 2
    assert "has steps 0 to 7" in capsys.readouterr().err
    assert not (tmp_path / "run" / "debug").exists()
