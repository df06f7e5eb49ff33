"""Details of the step that a run's numbers depend on: rates, penalties, what ADA measures, what stands still."""

from dataclasses import replace

import pytest
import torch

from conftest import debug_trainer, random_batches
from discriminators import DiscriminatorOutput
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training.trainer import Trainer

EVEN = TrainingProgress(2, 9, 0.6)
both_orders = pytest.mark.parametrize("order", ["lean", "sequential"])


def stand_still(trainer: Trainer) -> Trainer:
    """Let no update move a weight."""
    trainer.learning_rate = lambda step: 0.0
    trainer.adversary = replace(trainer.adversary, learning_rate=lambda step: 0.0)
    return trainer


@both_orders
def test_each_step_has_the_learning_rates_of_its_own_number(order: str) -> None:
    trainer = debug_trainer("ls_gan_p", f"training.order={order}", "optimizer.discriminator.schedule=follow")
    rates: dict[str, list[float]] = {"generator": [], "discriminator": []}
    for name, optimizer in (("generator", trainer.optimizer), ("discriminator", trainer.discriminator_optimizer)):
        optimizer.optimizer.register_step_pre_hook(
            lambda own, *_, name=name: rates[name].append(own.param_groups[0]["lr"])
        )
    for step in range(4):
        trainer.step(random_batches(4), TrainingProgress(1, step, step / 16))
    assert rates["generator"] == [trainer.learning_rate(step) for step in range(4)]
    assert rates["discriminator"] == [trainer.adversary.learning_rate(step) for step in range(4)]
    assert len(set(rates["generator"])) == 4


@both_orders
def test_adas_measure_is_of_real_logits(order: str) -> None:
    trainer = debug_trainer("stylegan2_ada_p", f"training.order={order}", "augment.interval=1", "penalties=null")
    forward, shown = trainer.unwrapped_discriminator.forward, []

    def sure(pyramid: tuple[torch.Tensor, ...]) -> DiscriminatorOutput:
        """Call whatever carries the generator's gradient fake, and in `sequential` the second of two detached ones."""
        shown.append(1)
        output = forward(pyramid)
        return output._replace(logits=0 * output.logits + (3.0 if len(shown) % 2 else -3.0))

    trainer.unwrapped_discriminator.forward = sure
    assert float(stand_still(trainer).step(random_batches(4), TrainingProgress(1, 1, 0.1))["augment/r_t"]) == 1.0


@both_orders
def test_the_discriminator_learns_in_training_mode_and_stands_still_in_evaluation_mode(order: str) -> None:
    trainer = debug_trainer("stylegan2_ada_p", f"training.order={order}", "augment=null")
    modes: list[tuple[bool, bool]] = []
    trainer.unwrapped_discriminator.register_forward_pre_hook(
        lambda network, _: modes.append((network.training, next(network.parameters()).requires_grad))
    )
    trainer.step(random_batches(4), TrainingProgress(2, 12, 0.6))  # path length is due
    learning, still = [(True, True)] * 2, [(False, False)]
    assert modes == (learning + still if order == "lean" else learning + 2 * still + still)


def test_the_discriminators_weights_do_not_decay() -> None:
    trainer = debug_trainer("ls_gan_p")
    assert {group["weight_decay"] for group in trainer.discriminator_optimizer.param_groups} == {0}
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0, 0.05}


def test_path_lengths_noise_differs_from_step_to_step() -> None:
    trainer = stand_still(debug_trainer("stylegan2_ada_p", "penalties.path_length.decay=1.0", "augment=null"))
    means = [
        float(trainer.step(random_batches(4), TrainingProgress(1, step, 0.2))["path_length/mean"]) for step in (4, 8, 8)
    ]
    assert means[0] != means[1]  # the same images, the same weights
    assert means[1] == means[2]


@pytest.mark.slow
def test_the_path_lengths_update_is_of_the_mean_over_micro_batches() -> None:
    gradients = []
    for micro_batches in (1, 2):
        trainer = debug_trainer("stylegan2_ada_p", "augment=null", "optimizer.clip_norm=1e9", dtype=torch.float64)
        for progress in (TrainingProgress(1, 4, 0.2), TrainingProgress(1, 8, 0.4)):
            # Halves of micro-batches are the images that the half of a whole batch has.
            batches = random_batches(8, micro_batches)
            scalars = stand_still(trainer).step(batches, progress)
        gradients.append(float(scalars["gradient_norm/path_length"]))
    assert gradients[0] > 0
    assert gradients[1] == pytest.approx(gradients[0], rel=1e-9)


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_the_share_is_of_l1s_weighted_gradient(weight: float) -> None:
    trainer = debug_trainer(
        "ls_gan_p", "losses.adversarial.weight={balanced: 0.3, cap: 100.0}", f"losses.l1.weight={weight}"
    )
    for step in (0, 8):
        scalars = trainer.step(random_batches(8), TrainingProgress(1, step, 0.1))
    assert float(scalars["gradient_ratio/adversarial"]) == pytest.approx(0.3, rel=1e-5)
