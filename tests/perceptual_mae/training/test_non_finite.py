"""A loss or gradient that is not finite changes nothing; too many in a row stop the run or take it back."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import debug_config, debug_trainer, random_batches
from discriminators.penalties.running_mean import RunningMean
from perceptual_mae.data.loading import Batch
from perceptual_mae.errors import UserError
from perceptual_mae.run.run import Run
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training import trainer_state
from perceptual_mae.training.divergence import Divergence
from perceptual_mae.training.loop import pretrain
from perceptual_mae.training.trainer import Trainer
from processes import run_two_processes

NAN = float("nan")
SHORT = ("evaluation.every=0", "evaluation.limit=2", "evaluation.grid_images=1")


def spoil(batches: Sequence[Batch]) -> list[Batch]:
    """The same batches with one pixel that is not a number."""
    images = [batch.images.float() / 255 for batch in batches]
    images[0][0, 0, 0, 0] = NAN
    return [replace(batch, images=each) for batch, each in zip(batches, images, strict=True)]


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    tensors, _ = trainer_state.state_dict(trainer, trainer.accelerator)
    return {f"{group}/{name}": value.clone() for group, each in tensors.items() for name, value in each.items()}


@pytest.mark.parametrize(
    ("method", "order"),
    [("mse", "lean"), ("ls_gan_p", "lean"), ("ls_gan_p", "sequential"), ("stylegan2_ada_p", "lean")],
)
def test_a_step_that_is_not_finite_leaves_weights_moments_and_running_means_as_they_were(
    method: str, order: str
) -> None:
    trainer = debug_trainer(method, f"training.order={order}")
    trainer.step(random_batches(4), TrainingProgress(1, 0, 0.0))
    before = state_of(trainer)
    trainer.step(spoil(random_batches(4, seed=1)), TrainingProgress(2, 8, 0.5))  # everything lazy is due
    assert trainer.skipped == 1
    after = state_of(trainer)
    adaptive = {name for name in before if name.startswith(("augmentation/", "path_length/", "balance/"))}
    assert [name for name in before.keys() - adaptive if not torch.equal(before[name], after[name])] == []
    assert [n for n in adaptive if not after[n].isfinite().all() and not n.endswith("r_t")] == []
    trainer.step(random_batches(4, seed=2), TrainingProgress(2, 9, 0.6))
    assert trainer.skipped == 0
    assert all(bool(each.isfinite().all()) for each in trainer.trained_parameters)


def test_a_skipped_step_is_no_step_bit_for_bit() -> None:
    skipping, plain = debug_trainer("ls_gan_p"), debug_trainer("ls_gan_p")
    for step in range(3):
        batches, progress = random_batches(4, seed=step), TrainingProgress(1, step, step / 16)
        if step != 1:
            plain.step(batches, progress)
        skipping.step(spoil(batches) if step == 1 else batches, progress)
    weights = zip(skipping.trained_parameters, plain.trained_parameters, strict=True)
    assert all(torch.equal(own, other) for own, other in weights)


def test_a_gradient_that_is_not_finite_is_skipped_where_all_losses_are_finite() -> None:
    trainer = debug_trainer("mse")
    trainer.generator_parameters[0].register_hook(lambda gradient: gradient * NAN)
    before = state_of(trainer)
    scalars = trainer.step(random_batches(4), TrainingProgress(1, 1, 0.1))
    assert bool(scalars["total"].isfinite())
    assert trainer.skipped == 1
    after = state_of(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("generator/"))


def test_a_measurement_that_is_not_finite_does_not_move_a_running_mean() -> None:
    mean = RunningMean(0.5)
    for value in (2.0, NAN, float("inf")):
        mean.measure(torch.tensor([value]))
        mean.finish()
        assert mean.expected == pytest.approx(2.0)


GOOD, BAD, SKIPPED = {"raw/l1": 1.0}, {"raw/l1": NAN}, {"raw/l1": 1.0, "skipped/step": 1.0}


@pytest.mark.parametrize(
    ("scalars", "bad", "is_over"),
    [
        ([GOOD, BAD, BAD, GOOD, BAD], [1, 2, 4], False),
        ([BAD, SKIPPED, BAD], [0, 1, 2], True),
        ([BAD, BAD, BAD, GOOD], [0, 1, 2], True),
    ],
)
def test_steps_in_a_row_are_counted(scalars: list[dict[str, float]], bad: list[int], is_over: bool) -> None:
    divergence = Divergence(2, None)
    observed, over = divergence.observe(list(enumerate(scalars)))
    assert ([step for step, _ in observed], over) == (bad, is_over)
    assert divergence.first is None or divergence.first == (bad[0] if is_over else bad[-1], "l1")


def test_a_row_of_bad_steps_goes_on_after_a_resume() -> None:
    before, after = Divergence(2, None), Divergence(2, None)
    assert not before.observe([(0, BAD), (1, BAD)])[1]
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert after.observe([(2, BAD)])[1]
    assert after.first == (0, "l1")


def spoil_steps(monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[Trainer, int], bool]) -> None:
    """Let the images of some steps have a pixel that is no number."""
    step = Trainer.step

    def spoiled(self: Trainer, batches: Sequence[Batch], progress: TrainingProgress) -> Any:
        return step(self, spoil(batches) if is_bad(self, progress.step) else batches, progress)

    monkeypatch.setattr(Trainer, "step", spoiled)


def test_a_single_bad_step_is_counted_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_steps(monkeypatch, lambda _, step: step == 5)
    pretrain(debug_config("mse", *SHORT), tmp_path / "run", quiet=True)
    records = Run(tmp_path / "run").metrics()
    assert [record.get("skipped_steps") for record in records if "total" in record] == [None, None, 1, None]
    assert all(record["total"] > 0 for record in records if "total" in record)
    assert "WARNING skipped step 5: 'mse' was not finite" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("max_skips", [0, 2])
def test_more_bad_steps_than_allowed_stop_the_run_naming_term_step_and_images(
    max_skips: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_steps(monkeypatch, lambda _, step: step >= 5)
    config = debug_config("mse", f"training.max_skips={max_skips}", *SHORT)
    with pytest.raises(UserError) as stopped:
        pretrain(config, tmp_path / "run", quiet=True)
    message = str(stopped.value)
    assert "'mse' stopped being finite at step 5; the last good checkpoint is" in message
    assert "--from-checkpoint 4 optimizer.lr=0.0005" in message
    assert "its batch is of images " in message
    assert f"pmae debug-batch {tmp_path / 'run'} 5" in message
    assert Run(tmp_path / "run").step == 4


def test_a_run_goes_back_with_a_lower_rate_where_it_is_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_steps(monkeypatch, lambda trainer, step: step >= 5 and trainer.lr_scale == 1)
    config = debug_config("mse", "training.max_skips=0", "training.rollback_lr=0.5", *SHORT)
    assert pretrain(config, tmp_path / "run", quiet=True)["steps"] == 8
    records = [record for record in Run(tmp_path / "run").metrics() if "total" in record]
    assert [record["step"] for record in records] == [2, 4, 6, 8]
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    went_back = {"failed_at": 5, "learning_rate_scale": 0.5}
    assert environment["history"] == [{"step": 4, "rolled_back": went_back}]
    (tmp_path / "run" / "summary.json").unlink()
    pretrain(config, tmp_path / "run", quiet=True)  # a resumed run keeps the lower rate
    assert json.loads((Run(tmp_path / "run").checkpoint / "state.json").read_text())["divergence"]["lr_scale"] == 0.5


def test_a_run_that_fails_at_the_same_step_again_and_again_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_steps(monkeypatch, lambda _, step: step >= 5)
    config = debug_config("mse", "training.max_skips=0", "training.rollback_lr=0.5", *SHORT)
    with pytest.raises(UserError, match="stopped being finite at step 5"):
        pretrain(config, tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "log.txt").read_text().count("gone back to step_00000004") == 3


@pytest.mark.slow
def test_both_processes_skip_a_step_that_is_not_finite_in_one_of_them() -> None:
    run_two_processes(Path(__file__).with_name("skipping_processes.py"))
