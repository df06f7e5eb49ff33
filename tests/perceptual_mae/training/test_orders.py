"""Two orders of one step: what `lean` saves, and that each half's gradient is the one of `sequential`."""

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer

from conftest import ADVERSARIAL, debug_config, debug_trainer, halved, random_batches, slow, tiered
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training.trainer import Trainer

ODD, EVEN = TrainingProgress(1, 3, 0.2), TrainingProgress(2, 9, 0.6)


def stepped(method: str, order: str, *overrides: str, moments: tuple[TrainingProgress, ...] = (EVEN,)) -> Trainer:
    """A trainer in float64 after steps on random batches."""
    trainer = debug_trainer(method, *overrides, f"training.order={order}", dtype=torch.float64)
    for progress in moments:
        trainer.step(random_batches(4, seed=progress.step), progress)
    return trainer


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    for name, value in second.state_dict().items():
        torch.testing.assert_close(first.state_dict()[name], value, rtol=1e-9, atol=1e-12, msg=name)


def without_what_differs(method: str) -> list[str]:
    """Leave out what differs on purpose: how often is drawn, and the path length's second step of the generator."""
    penalised = debug_config(method).penalties.get("path_length") is not None
    return ["augment=null", *(["penalties.path_length=null"] if penalised else [])]


@pytest.mark.parametrize("progress", [ODD, EVEN, TrainingProgress(1, 0, 0.0)], ids=["odd", "even", "first"])
@pytest.mark.parametrize("method", tiered(ADVERSARIAL))
def test_the_discriminator_takes_the_step_it_takes_in_sequential_order(method: str, progress: TrainingProgress) -> None:
    lean, sequential = (
        stepped(method, order, *without_what_differs(method), moments=(progress,)) for order in ("lean", "sequential")
    )
    assert_same_weights(lean.unwrapped_discriminator, sequential.unwrapped_discriminator)


@pytest.mark.slow
@pytest.mark.parametrize("leaf", ["received", "clean_image"])
def test_under_one_draw_the_orders_agree_on_augmented_and_penalised_images(
    leaf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    augmentation = Trainer.augmentation
    monkeypatch.setattr(Trainer, "augmentation", lambda self, name, *rest: augmentation(self, "pair", *rest))
    overrides = ("augment.initial_p=0.8", f"penalties.r1.leaf={leaf}", "penalties.r1.every=1")
    lean, sequential, plain = (
        stepped("stylegan2_ada_p", order, "penalties.path_length=null", *more)
        for order, more in (("lean", overrides), ("sequential", overrides), ("sequential", overrides[1:]))
    )
    assert_same_weights(lean.unwrapped_discriminator, sequential.unwrapped_discriminator)
    with pytest.raises(AssertionError):  # the augmentation has had its say
        assert_same_weights(plain.unwrapped_discriminator, sequential.unwrapped_discriminator)


@pytest.mark.parametrize("progress", [ODD, EVEN], ids=["odd", "even"])
@pytest.mark.parametrize("method", halved(ADVERSARIAL))
def test_the_generator_takes_the_step_it_takes_against_a_discriminator_that_stands_still(
    method: str, progress: TrainingProgress
) -> None:
    measured = TrainingProgress(1, 0, 0.0)  # a balanced weight is zero before the first measurement
    overrides = [*without_what_differs(method), "optimizer.discriminator.lr=1e-30"]
    lean, sequential = (
        stepped(method, order, *overrides, moments=(measured, progress)) for order in ("lean", "sequential")
    )
    assert_same_weights(lean.unwrapped_generator, sequential.unwrapped_generator)


@pytest.mark.parametrize("method", halved(ADVERSARIAL))
def test_both_orders_report_the_same_scalars(method: str) -> None:
    names = []
    for order in ("lean", "sequential"):
        trainer = debug_trainer(method, f"training.order={order}")
        names.append(
            [set(trainer.step(random_batches(4), progress)) for progress in (TrainingProgress(1, 0, 0.0), ODD, EVEN)]
        )
    assert names[0] == names[1]


@pytest.mark.parametrize("method", tiered(["ls_gan_p", "msg_gan_p", "stylegan2_ada_p"]))
def test_lean_shows_the_discriminator_real_and_fake_once_each(method: str) -> None:
    trainer = debug_trainer(method, "training.order=lean", *without_what_differs(method))
    passes: list[int] = []
    trainer.unwrapped_discriminator.register_forward_hook(lambda *_: passes.append(1))
    for progress in (ODD, EVEN):
        passes.clear()
        trainer.step(random_batches(4), progress)
        assert len(passes) == 2


def test_lean_draws_one_augmentation_for_both_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    purposes: list[str] = []
    augmentation = Trainer.augmentation
    monkeypatch.setattr(
        Trainer, "augmentation", lambda self, name, *rest: (purposes.append(name), augmentation(self, name, *rest))[1]
    )
    trainer = debug_trainer("stylegan2_ada_p", "training.order=lean", "augment.initial_p=0.8")
    trainer.step(random_batches(4), EVEN)
    assert purposes == ["pair"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ls_gan_p", slow("msg_gan_p"), slow("stylegan2_ada_p")])
def test_lean_micro_batches_equal_one_batch(method: str) -> None:
    trained = []
    for micro_batches in (1, 2):
        trainer = debug_trainer(method, "training.order=lean", dtype=torch.float64)
        for step in (0, 4, 9):  # path length is due twice, and its first time only measures
            progress = TrainingProgress(1 + step % 2, step, step / 16)
            scalars = trainer.step(random_batches(16, micro_batches, seed=step), progress)
        scalars.pop("variety", None)  # a deviation over the images of one micro-batch
        trained.append((scalars, trainer))
    (whole, whole_trainer), (parts, parts_trainer) = trained
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-6, atol=1e-8, msg=name)
    assert_same_weights(parts_trainer.unwrapped_generator, whole_trainer.unwrapped_generator)
    assert_same_weights(parts_trainer.unwrapped_discriminator, whole_trainer.unwrapped_discriminator)


def test_lean_runs_the_generator_once_a_micro_batch() -> None:
    trainer = debug_trainer("ls_gan_p", "training.order=lean")
    passes: list[int] = []
    trainer.unwrapped_generator.register_forward_hook(lambda *_: passes.append(1))
    trainer.step(random_batches(8, 4), EVEN)
    assert len(passes) == 4


def test_path_length_after_a_lean_step_leaves_the_discriminator_without_gradient() -> None:
    trainer = debug_trainer("stylegan2_ada_p", "training.order=lean")
    trainer.step(random_batches(4), TrainingProgress(1, 4, 0.2))
    assert all(parameter.grad is None for parameter in trainer.unwrapped_discriminator.parameters())


def test_a_loss_scale_that_falls_in_a_lean_step_does_not_shrink_the_generators_gradient() -> None:
    seen: list[torch.Tensor] = []
    for overflows in (False, True):
        trainer = debug_trainer("ls_gan_p", "training.order=lean")
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)  # Accelerate sets one up on a GPU only
        trainer.accelerator.scaler = scaler
        trainer.optimizer = AcceleratedOptimizer(trainer.optimizer.optimizer, scaler=scaler)
        trainer.discriminator_optimizer = AcceleratedOptimizer(trainer.discriminator_optimizer.optimizer, scaler=scaler)
        weight = trainer.unwrapped_generator.decoder.pred.weight
        if overflows:
            next(trainer.unwrapped_discriminator.parameters()).register_hook(lambda gradient: gradient / 0)
        scalars = trainer.step(random_batches(4), ODD)
        assert float(scalars["skipped/discriminator"]) == overflows
        assert float(scalars["skipped/generator"]) == 0
        seen.append(trainer.optimizer.optimizer.state[weight]["exp_avg"])
    torch.testing.assert_close(seen[1], seen[0])
