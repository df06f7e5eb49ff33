"""State that a checkpoint restores besides weights and Adam's moments."""

import json
from pathlib import Path

import pytest
import torch

from conftest import FORMS, debug_config, debug_trainer, halved, random_batches
from perceptual_mae.run import checkpoint
from perceptual_mae.run.signals import Interrupted
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training import trainer_state
from perceptual_mae.training.loop import Pretraining, pretrain
from perceptual_mae.training.trainer import Trainer
from test_loop import stop_after


def test_the_fp16_scale_comes_back(tmp_path: Path) -> None:
    saved, fresh = debug_trainer("mse"), debug_trainer("mse")
    for trainer, scale in ((saved, 2.0**5), (fresh, 2.0**8)):
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        trainer.accelerator.scaler.scale(torch.ones(()))
    path = checkpoint.save(tmp_path, 1, *trainer_state.state_dict(saved, saved.accelerator))
    trainer_state.load_state_dict(fresh, fresh.accelerator, path)
    assert fresh.accelerator.scaler.get_scale() == 2.0**5


def test_the_alarms_open_windows_and_the_last_losses_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = debug_config("ls_gan_p", "training.log_every=1")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            pretrain(config, tmp_path / "run", quiet=True)
    run = Pretraining(config, tmp_path / "run", quiet=True)
    assert not any(run.monitor.state_dict()["windows"].values())
    path = run.find_checkpoint()
    run.load(path)
    run.close()
    windows = run.monitor.state_dict()["windows"]
    assert len(windows["discriminator_wins"]) == 3
    assert run.last_losses.keys() == {"l1", "adversarial"}
    assert run.step == 3


def test_a_stop_at_an_epochs_end_saves_though_no_checkpoint_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = debug_config("mse", "training.epochs=5", "training.checkpoint_every=5")
    with monkeypatch.context() as patch:
        stop_after(patch, 4)  # 32 images an epoch, 8 a step
        with pytest.raises(Interrupted, match="after step 4"):
            pretrain(config, tmp_path / "run", quiet=True)
    (path,) = checkpoint.checkpoints(tmp_path / "run" / "checkpoints")
    assert checkpoint.step_of(path) == 4


def test_a_checkpoints_metadata_is_what_version_0_1_wrote(tmp_path: Path) -> None:
    pretrain(debug_config("mse", "training.epochs=1"), tmp_path / "run", quiet=True)
    (path,) = checkpoint.checkpoints(tmp_path / "run" / "checkpoints")
    metadata = checkpoint.load_metadata(path)
    keys = {"ema_updates", "scaler", "step", "images_seen", "training_images", "alarms", "losses"}
    assert metadata.keys() == keys
    assert json.dumps(metadata)


@pytest.mark.parametrize("form", halved(FORMS))
def test_a_trainer_goes_on_exactly_from_a_checkpoint(form: str, tmp_path: Path) -> None:
    unbroken, stopped, resumed = (debug_trainer(*FORMS[form]) for _ in range(3))

    def take(trainer: Trainer, steps: range) -> None:
        for step in steps:
            trainer.step(random_batches(4, seed=step), TrainingProgress(1 + step // 4, step, step / 16))

    take(unbroken, range(12))
    take(stopped, range(6))
    tensors, metadata = trainer_state.state_dict(stopped, stopped.accelerator)
    path = checkpoint.save(tmp_path, 6, tensors, metadata)
    trainer_state.load_state_dict(resumed, resumed.accelerator, path)
    take(resumed, range(6, 12))
    for part, state in trainer_state.state_dict(unbroken, unbroken.accelerator)[0].items():
        again = trainer_state.state_dict(resumed, resumed.accelerator)[0][part]
        assert all(torch.equal(value, again[name]) for name, value in state.items()), part
